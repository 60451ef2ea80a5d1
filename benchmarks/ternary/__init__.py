"""Training a small BitNet b1.58 and showing that this package runs it without loss: docs/ternary.md."""
