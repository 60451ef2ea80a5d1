"""How each tool quantizes a model, for the comparison of perplexity against size: see docs/accuracy.md."""
