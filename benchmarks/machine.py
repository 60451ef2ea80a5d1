"""What a committed run has to say about where it was taken."""

from __future__ import annotations

import os
import platform
from typing import Any

import numpy as np

from tmac import _core


def machine() -> dict[str, Any]:
    return {
        "cpu": _core.cpu_model(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": [name for name, present in _core.cpu_features().items() if present],
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"tmac": _core.__version__, "python": platform.python_version(), "numpy": np.__version__},
    }
