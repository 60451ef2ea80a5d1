"""Benchmarks: each asserts its answer before it times it. Committed runs are in results/."""

import sys
from pathlib import Path

# `python -m` puts the checkout first, whose tmac has no compiled core unless it was installed with -e.
_ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
