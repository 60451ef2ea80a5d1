"""The ways to choose codes for a weight."""

from tmac.quant.methods.rtn import rtn

__all__ = ["rtn"]
