"""Benchmarks: each asserts its answer before it times it. Committed runs are in results/."""

import sys
from pathlib import Path

# `python -m` puts the checkout first: its tmac is the one to measure only where the core was built into it.
_ROOT = Path(__file__).resolve().parent.parent
if not any((_ROOT / "tmac").glob("_core.*[!i]")):
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
