"""torch layers over the compiled core."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("tmac.nn needs torch: pip install 'tmac-cpu[torch]'", name="torch") from error

from tmac.nn.embedding import QuantEmbedding
from tmac.nn.experts import QuantExpert, QuantExperts
from tmac.nn.linear import QuantLinear
from tmac.nn.normed_linear import NormedQuantLinear
from tmac.nn.packed import PackedModule
from tmac.nn.swap import Site, find_experts, find_linears

__all__ = [
    "NormedQuantLinear",
    "PackedModule",
    "QuantEmbedding",
    "QuantExpert",
    "QuantExperts",
    "QuantLinear",
    "Site",
    "find_experts",
    "find_linears",
]
