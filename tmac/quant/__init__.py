"""Turning a float model into a low-bit one, and measuring what that costs."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("tmac.quant needs torch: pip install 'tmac-cpu[torch]'", name="torch") from error

from tmac.quant.config import QuantConfig
from tmac.quant.evaluate import next_token_agreement, next_tokens, perplexity
from tmac.quant.quantize import quantize_

__all__ = ["QuantConfig", "next_token_agreement", "next_tokens", "perplexity", "quantize_"]
