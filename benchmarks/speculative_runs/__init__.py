"""What `benchmarks.speculative` is made of: checkpoints, limits, processes that are measured, tables."""
