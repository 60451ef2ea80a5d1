"""Checkpoint formats: one file per format. Uses numpy, never torch or transformers."""

from tmac.codes import FormatError

__all__ = ["FormatError"]
