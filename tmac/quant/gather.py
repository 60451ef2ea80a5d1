"""Statistics of the inputs of every linear layer, gathered block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from tmac.progress import with_progress
from tmac.quant.blocks import BlockSource
from tmac.quant.layer_inputs import InputMoments, LayerInputs, watching
from tmac.quant.statistics import LayerStatistics
from tmac.quant.statistics_cache import StatisticsCache
from tmac.quant.windows import batches, windows

_VERSION = 1


@dataclass(frozen=True)
class _Place:
    block: int
    leader: str


class GatheredStatistics(Mapping[str, LayerStatistics]):
    """Layer name -> statistics. Those that `gather` left in a cache are read from it whenever they are asked for.

    Layers that read the same tensor share one object, as long as somebody holds it.

    Attributes:
        missing: names of the layers that no token has reached; they are not among the keys.
    """

    def __init__(self, cache: StatisticsCache | None) -> None:
        self._cache = cache
        self._places: dict[str, _Place] = {}
        self._held: dict[str, LayerStatistics] = {}
        self._last: tuple[str, LayerStatistics] | None = None
        self.missing: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> LayerStatistics:
        place = self._places[name]
        if self._cache is None:
            return self._held[place.leader]
        if self._last is None or self._last[0] != place.leader:
            self._last = None  # no more than one is kept
            self._last = place.leader, _read(self._cache, place)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _add(self, block: int, order: Collection[str], leaders: Mapping[str, str]) -> None:
        self._places.update({name: _Place(block, leaders[name]) for name in order if name in leaders})
        self.missing += tuple(name for name in order if name not in leaders)


def gather(
    source: BlockSource,
    ids: Tensor,
    *,
    window: int = 512,
    batch_tokens: int = 2048,
    cache: str | Path | None = None,
    progress: bool | None = None,
) -> GatheredStatistics:
    """`X^T X`, and the largest |x|, of the inputs that the float model gives to each of its linear layers.

    In memory are one block, the hidden states of the whole text (f32: 4 bytes x tokens x hidden size) and the
    statistics of the block (4 bytes x in_features^2 for every input; layers that read the same tensor share one).
    Without a cache the statistics of all blocks stay there too.

    Args:
        source: the float model.
        ids: int64 `[tokens]`, cut into windows that each start afresh (a last one that is shorter is left out), or
            `[batch, tokens]`, whose rows are the windows. At least 128 tokens.
        window: tokens of a window; at most those that the model has positions for.
        batch_tokens: tokens that go through a block at once, in whole windows, at least one.
        cache: a folder for the statistics of this model and these ids: found there, they are not gathered again, and a
            call that was interrupted goes on with the block where it was. Files that are damaged are replaced.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.

    Returns:
        the statistics by layer name, in the order of the model; `.missing` names the layers that no token has reached.

    Raises:
        ValueError: there are too few tokens, or the input of a layer, which is named, holds NaN or Inf.
        OSError: the cache cannot be written.

    Example:
        >>> statistics = gather(open_blocks("SmolLM2-135M"), ids)
    """
    text = windows("gather", ids, window)
    store = None if cache is None else StatisticsCache(cache, source.fingerprint, text, {"gather": _VERSION})
    found = GatheredStatistics(store)
    done = [None if store is None else _leaders(store, index) for index in range(len(source))]
    last = max((index for index, leaders in enumerate(done) if leaders is None), default=-1)
    hidden = source.begin(text) if last >= 0 else torch.empty(0)
    for index in with_progress(range(len(source)), "statistics", progress, len(source)):
        leaders = done[index]
        if leaders is None:
            with source.block(index) as module:
                moments = _moments(source, index, module, hidden, batch_tokens)
            del module
            leaders, statistics = moments.leaders, moments.by_leader()
            del moments
            if store is None:
                found._held.update(statistics)
            else:
                _write(store, index, statistics, leaders)
            del statistics
        elif index < last:
            with source.block(index) as module, torch.no_grad():
                for rows in batches(text, batch_tokens):
                    hidden[rows] = source.run(index, module, hidden[rows])
            del module
        found._add(index, source.layers(index), leaders)
    return found


def gather_block(
    source: BlockSource,
    index: int,
    module: nn.Module,
    hidden: Tensor,
    hidden_float: Tensor | None = None,
    *,
    module_float: nn.Module | None = None,
    names: Collection[str] | None = None,
    batch_tokens: int = 2048,
) -> dict[str, LayerStatistics]:
    """Statistics of one block as it is now, with inputs that quantized blocks before it have given.

    Args:
        source: of the block.
        index: its number.
        module: the block; its layers may be quantized already, or stand for such with the weights that they have.
        hidden: its input, f32 `[batch, tokens, hidden]`.
        hidden_float: the float model's input of the same block: `cross` is filled in. It stays None for layers that
            only some tokens reach, which the two models may choose differently.
        module_float: the block with its float weights, which `hidden_float` goes through in step.
        names: the layers that are asked for; None is all. The block runs no further than they need.
        batch_tokens: as of `gather`.

    Returns:
        the statistics by layer name, of those that tokens have reached.

    Raises:
        ValueError: only one of `hidden_float` and `module_float` is given, their shapes differ, there is no such layer,
            or an input holds NaN or Inf.
    """
    if (hidden_float is None) != (module_float is None):
        raise ValueError("[gather_block] expected both hidden_float and module_float, or none of them")
    if hidden_float is not None and hidden_float.shape != hidden.shape:
        raise ValueError(
            f"[gather_block] expected hidden_float of {list(hidden.shape)} as hidden, found {list(hidden_float.shape)}"
        )
    moments = _moments(
        source, index, module, hidden, batch_tokens, names=names, others=(module_float, hidden_float), advance=False
    )
    by_leader = moments.by_leader()
    return {name: by_leader[moments.leaders[name]] for name in source.layers(index) if name in moments.leaders}


def advance(source: BlockSource, index: int, module: nn.Module, hidden: Tensor, *, batch_tokens: int = 2048) -> Tensor:
    """The output of a block, f32 `[batch, tokens, hidden]`; batch by batch, without gradients.

    Args:
        source: of the block.
        index: its number.
        module: the block.
        hidden: its input, f32 `[batch, tokens, hidden]`.
        batch_tokens: as of `gather`.
    """
    with torch.no_grad():
        parts = [source.run(index, module, hidden[rows]) for rows in batches(hidden, batch_tokens)]
    return torch.cat(parts)


class _Enough(Exception):  # noqa: N818
    """All inputs that are wanted have been seen."""


def _moments(
    source: BlockSource,
    index: int,
    module: nn.Module,
    hidden: Tensor,
    batch_tokens: int,
    *,
    names: Collection[str] | None = None,
    others: tuple[nn.Module | None, Tensor | None] = (None, None),
    advance: bool = True,
) -> InputMoments:
    """Runs a block over all tokens. Where `advance` is set, its outputs take the place of `hidden`, but of the head."""
    layers = _named_layers(source, index, module, names)
    advance = advance and index < len(source) - 1
    moments = InputMoments()
    module_float, hidden_float = others
    with torch.no_grad():
        for rows in batches(hidden, batch_tokens):
            floats: dict[str, Tensor] = {}
            if module_float is not None and hidden_float is not None:
                floats = _inputs(source, index, module_float, hidden_float[rows], names)
            seen = LayerInputs()
            whole = hidden[rows].shape[:2]

            def see(name: str, x: Tensor) -> None:
                leader = seen.leader(name, x)  # noqa: B023
                x_float = floats.get(name) if x.shape[:-1] == whole else None  # noqa: B023
                moments.add(name, leader, x, x_float)
                if not advance and len(seen.names) == len(layers):  # noqa: B023
                    raise _Enough

            with watching(layers, see):
                try:
                    output = source.run(index, module, hidden[rows])
                    if advance:
                        hidden[rows] = output
                except _Enough:
                    pass
    return moments


def _inputs(
    source: BlockSource, index: int, module: nn.Module, hidden: Tensor, names: Collection[str] | None
) -> dict[str, Tensor]:
    """Layer -> its input in one batch."""
    layers = _named_layers(source, index, module, names)
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        found[name] = x
        if len(found) == len(layers):
            raise _Enough

    with watching(layers, see), suppress(_Enough):
        source.run(index, module, hidden)
    return found


def _named_layers(
    source: BlockSource, index: int, module: nn.Module, names: Collection[str] | None
) -> dict[str, nn.Module]:
    layers: dict[str, nn.Module] = dict(source.linears(index, module))
    unknown = sorted(set(names or ()) - set(layers))
    if unknown:
        raise ValueError(f"[gather_block] block {index} has no layer {unknown[0]!r}")
    return layers if names is None else {name: layer for name, layer in layers.items() if name in names}


def _file(index: int) -> str:
    return f"block-{index:05d}"


def _write(
    store: StatisticsCache, index: int, statistics: Mapping[str, LayerStatistics], leaders: Mapping[str, str]
) -> None:
    tensors = {}
    for name, each in statistics.items():
        tensors[f"{name}.hessian"], tensors[f"{name}.channel_max"] = each.hessian, each.channel_max
    tokens = {name: each.tokens for name, each in statistics.items()}
    store.write(_file(index), tensors, {"leaders": dict(leaders), "tokens": tokens})


def _leaders(store: StatisticsCache, index: int) -> dict[str, str] | None:
    about = store.about(_file(index)) if store.is_whole(_file(index)) else None
    return None if about is None else about["leaders"]


def _read(store: StatisticsCache, place: _Place) -> LayerStatistics:
    names = [f"{place.leader}.{part}" for part in ("hessian", "channel_max")]
    about, tensors = store.about(_file(place.block)), store.read(_file(place.block), names)
    if about is None or tensors is None:
        path = store.path(_file(place.block))
        raise ValueError(f"[gather] {path} is damaged or gone since the statistics were gathered: gather them again")
    return LayerStatistics(about["tokens"][place.leader], *(tensors[name] for name in names))
