"""Benchmarks: each asserts its answer before it times it. Committed runs are in results/."""
