"""Engines whose weights are read while they run, however small the model is."""

from functools import partial

import tmac
from tmac.runtime.streaming import load
from tmac.runtime.streaming.plan import divide

LIMIT = "64G"  # what fits is up to `streaming`, not to the size of the process


def streaming(monkeypatch, whole=0, planes=None, slots=2):
    """Plans keep so many whole layers, and of the others so many leading planes."""
    division = partial(divide, resident_planes=planes, slots=slots, whole=whole)
    monkeypatch.setattr(load, "make_plan", lambda limit, layers, fixed, **_: division(limit, layers, fixed))


def open_streamed(path, **options):
    """An engine that reads what its plan says."""
    return tmac.Engine.from_pretrained(path, memory_limit=LIMIT, **options)
