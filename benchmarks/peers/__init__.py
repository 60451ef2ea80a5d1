"""Other packages on the same shapes, in turn with our kernels: see docs/benchmarks.md."""
