"""Which kernels serve a shape, by measurement: `tune`, and what packing asks."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tmac import _core
from tmac.progress import with_progress
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads
from tmac.tuning_cache import Choice, Machine, PairTimes, TuningCache, cache_folder

DECODE_TOKENS = (1, 8)
PROMPT_TOKENS = 128
TOKENS = (*DECODE_TOKENS, PROMPT_TOKENS)
TIE = 1.03
PINS = ("TMAC_KERNEL", "TMAC_METHOD", "TMAC_ISA")
SWITCH = "TMAC_TUNING"

Shape = tuple[QuantSpec, int, int]
_caches: dict[tuple[Path, int], TuningCache] = {}


class Model(Protocol):
    """What `tune` needs of a torch module: `QuantLinear` layers are those with `repack_`."""

    def modules(self) -> Iterable[Any]:
        """The module and everything below it."""


@dataclass(frozen=True)
class TunedShape:
    """The choice for the weights of one shape."""

    spec: QuantSpec
    out_features: int
    in_features: int
    choice: Choice
    measured: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "spec": self.spec.to_dict(),
            "out_features": self.out_features,
            "in_features": self.in_features,
            "measured": self.measured,
            **self.choice.to_dict(),
        }


@dataclass(frozen=True)
class TuningReport:
    """What `tune` found and did.

    Args:
        machine: CPU, features, threads and version: what the choices hold for.
        shapes: one for each distinct spec and shape. `measured` is False where the choice was in the cache.
        repacked: layers that another choice serves than before.
    """

    machine: Machine
    shapes: tuple[TunedShape, ...]
    repacked: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        shapes = [shape.to_dict() for shape in self.shapes]
        return {"machine": self.machine.to_dict(), "shapes": shapes, "repacked": self.repacked}


def tune(
    model_or_shapes: Model | Iterable[Shape],
    num_threads: int | None = None,
    progress: bool | None = None,
    force: bool = False,
) -> TuningReport:
    """Measures which kernels are the fastest for the shapes of a model, keeps the answer, and repacks the model.

    Every choice of a decoding and a prompt kernel is timed at 1, 8 and 128 tokens over weights that do not fit into the
    cache. A choice changes which numerics class computes (docs/numerics.md), and nothing else. The answers are kept in
    the user's cache folder, and weights that are packed later follow them, unless TMAC_KERNEL, TMAC_METHOD or TMAC_ISA
    is set; then, and with TMAC_TUNING=off, nothing is read or kept.

    Args:
        model_or_shapes: a torch module, whose `QuantLinear` layers are then repacked in place where the choice is
            another; or `(spec, out_features, in_features)` of each shape.
        num_threads: what to measure with; None is `get_num_threads()`. A choice holds for one number of threads.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.
        force: measure what is known as well.

    Raises:
        ValueError: num_threads or a shape is out of range, or TMAC_TUNING is neither "on" nor "off".
        UnsupportedSpecError: no kernel serves a spec.

    Example:
        >>> report = tmac.tune([(tmac.QuantSpec(bits=4, group_size=32), 64, 64)])
        >>> report.shapes[0].choice.decode in {row["name"] for row in tmac.kernels()}
        True
    """
    threads = get_num_threads() if num_threads is None else num_threads
    if threads < 1:
        raise ValueError(f"[tune] num_threads must be at least 1, got {threads}")
    layers: list[Any] = []
    shapes: Iterable[Shape]
    if hasattr(model_or_shapes, "modules"):
        layers = [module for module in model_or_shapes.modules() if hasattr(module, "repack_")]
        shapes = [_shape_of(layer) for layer in layers]
    else:
        shapes = model_or_shapes
    distinct = list(dict.fromkeys(shapes))
    for spec, _, _ in distinct:
        _core.select_kernel(spec)  # an unsupported spec is refused before anything is measured
    tuned = {shape: _tuned(shape, threads, force) for shape in with_progress(distinct, "tuning", progress)}
    repacked = sum(layer.repack_(tuned[_shape_of(layer)].choice.names) for layer in layers)
    return TuningReport(Machine.here(threads), tuple(tuned.values()), repacked)


def tuned_kernels(spec: QuantSpec, out_features: int, in_features: int) -> str:
    """The tuned choice for a shape as "decode,prompt"; "" where there is none that holds here."""
    choice = _known(open_cache(get_num_threads()), spec, shape_key(spec, out_features, in_features))
    return "" if choice is None else choice.names


def choose(times: Sequence[PairTimes]) -> PairTimes:
    """The best of some choices, of which the first is the default.

    Of those whose decoding score is within 3 % of the least, those whose prompts are within 3 % of the fastest of them,
    and of these the first: noise does not change a choice.
    """
    decoding = min(map(decode_score, times))
    close = [each for each in times if decode_score(each) <= TIE * decoding]
    prompts = min(each.seconds[PROMPT_TOKENS] for each in close)
    return next(each for each in close if each.seconds[PROMPT_TOKENS] <= TIE * prompts)


def decode_score(times: PairTimes) -> float:
    """Geometric mean of the seconds at 1 and at 8 tokens: a step alone, and what verifies drafts or serves a batch."""
    return math.prod(times.seconds[tokens] for tokens in DECODE_TOKENS) ** (1 / len(DECODE_TOKENS))


def measure(spec: QuantSpec, out_features: int, in_features: int, num_threads: int) -> tuple[PairTimes, ...]:
    """Median seconds of every choice that the environment leaves, the default first."""
    rows = _core.time_kernels(spec, out_features, in_features, TOKENS, num_threads)
    return tuple(
        PairTimes(decode, prompt, dict(zip(TOKENS, map(statistics.median, samples), strict=True)))
        for decode, prompt, samples in rows
    )


def shape_key(spec: QuantSpec, out_features: int, in_features: int) -> str:
    """The name of a shape in the cache file."""
    fields = " ".join(f"{name}={value}" for name, value in spec.to_dict().items())
    return f"{out_features}x{in_features} {fields}"


def open_cache(num_threads: int) -> TuningCache | None:
    """The cache for this CPU and a number of threads; None where the environment switches it off or pins a choice.

    Raises:
        ValueError: TMAC_TUNING is neither "on" nor "off".
    """
    if not tuning_enabled() or any(os.environ.get(name) for name in PINS):
        return None
    try:
        folder = cache_folder()
    except RuntimeError:  # this user has no home
        return None
    key = (folder, num_threads)
    if key not in _caches:
        _caches[key] = TuningCache(folder, Machine.here(num_threads))
    return _caches[key]


def tuning_enabled() -> bool:
    """What TMAC_TUNING says.

    Raises:
        ValueError: it is neither "on" nor "off".
    """
    switch = os.environ.get(SWITCH) or "on"
    if switch not in ("on", "off"):
        raise ValueError(f"[{SWITCH}] unknown {switch!r}; known are on, off")
    return switch == "on"


def _shape_of(layer: Any) -> Shape:
    return layer.spec, layer.out_features, layer.in_features


def _tuned(shape: Shape, threads: int, force: bool) -> TunedShape:
    """From the cache, else measured under its lock, so that processes that tune at once do not slow each other."""
    cache, key = open_cache(threads), shape_key(*shape)
    choice = None if force else _known(cache, shape[0], key)
    if choice is not None:
        return TunedShape(*shape, choice, False)
    with cache.lock() if cache else nullcontext():
        if cache and not force:
            cache.reload()
            choice = _known(cache, shape[0], key)
        if choice is not None:
            return TunedShape(*shape, choice, False)
        times = measure(*shape, threads)
        best = choose(times)
        choice = Choice(best.decode, best.prompt, times)
        if cache:
            cache.put(key, choice)
    return TunedShape(*shape, choice, True)


def _known(cache: TuningCache | None, spec: QuantSpec, key: str) -> Choice | None:
    """What the cache holds, if this version and CPU still offer all that it names."""
    choice = cache.get(key) if cache else None
    if choice is None:
        return None
    offered = set(_core.candidate_kernels(spec))
    named = {(choice.decode, choice.prompt), *((each.decode, each.prompt) for each in choice.times)}
    complete = all(tuple(each.seconds) == TOKENS for each in choice.times)
    return choice if choice.times and complete and named <= offered else None
