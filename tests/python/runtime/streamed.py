"""Engines whose weights are read while they run, however small the model is."""

import gc
import os
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

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


@contextmanager
def replaced_descriptor(path, other):
    """Whatever reads the file by its descriptor reads another one."""
    target = str(path)
    gc.collect()  # engines of other tests
    (number,) = (int(each.name) for each in Path("/proc/self/fd").iterdir() if _link(each) == target)
    kept, new = os.dup(number), os.open(other, os.O_RDONLY)
    os.dup2(new, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(new)


def _link(path):
    with suppress(OSError):
        return str(path.readlink())
