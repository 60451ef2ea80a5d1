"""Checkpoint formats: one file per format. Uses numpy, never torch or transformers."""

from tmac.formats.errors import FormatError

__all__ = ["FormatError"]
