"""Accuracy of a model: perplexity, divergence from the float model, multiple choice, and what of it is significant."""
