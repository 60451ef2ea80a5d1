"""torch layers over the compiled core."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("tmac.nn needs torch: pip install 'tmac-cpu[torch]'", name="torch") from error

from tmac.nn.linear import QuantLinear
from tmac.nn.swap import LinearSite, find_linears

__all__ = ["LinearSite", "QuantLinear", "find_linears"]
