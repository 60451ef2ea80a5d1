"""Checkpoints of every format into the runtime's model: each weight is read, packed for this CPU and handed over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac._core import UnsupportedSpecError
from tmac.codes import FormatError
from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import Array, Checkpoint, StoredTensor, to_float32
from tmac.formats.errors import format_error
from tmac.formats.in_order import in_order
from tmac.progress import with_progress
from tmac.runtime.arguments import integer
from tmac.runtime.chat_template import ChatTemplates
from tmac.runtime.description import ModelDescription
from tmac.runtime.families import describe
from tmac.runtime.hub import local_path
from tmac.runtime.low_bits import low_bit_spec, pack_floats, pack_layer, reads_rows
from tmac.runtime.places import Place, find_places
from tmac.runtime.tokenizer import NoTokenizer, Tokenizer, tokenizer_or_none
from tmac.spec import Activation, QuantSpec
from tmac.threads import get_num_threads

LARGE = 64 << 20  # bytes; such weights are read one at a time, and first, while the model takes little memory
LARGE_BY_ROWS = 8 << 20  # the same of those that several threads read
MOST_THREADS = 8  # each holds a weight, or some rows of one


class Builder(Protocol):
    """What `_core.ModelBuilder` takes. Arrays are borrowed: the builder keeps them alive."""

    def add_packed(self, name: str, buffer: NDArray[np.uint8], bias: NDArray[np.float32] | None) -> None:
        """Bytes of a `PackedWeight`, bias f32 `[out_features]`."""

    def add_floats(
        self,
        name: str,
        array: Array,
        dtype: str,
        bias: NDArray[np.float32] | None = None,
    ) -> None:
        """A matrix or vector in "F32", "F16" or "BF16" (as uint16)."""


@dataclass(frozen=True)
class OpenModel:
    """A checkpoint that the runtime can decode. Nothing of the weights has been read.

    Args:
        checkpoint: its headers.
        description: of its family, `description.config` is what `_core.ModelBuilder` is made with.
        places: where each weight is.
    """

    checkpoint: Checkpoint
    description: ModelDescription
    places: tuple[Place, ...]


def open_model(
    path_or_id: str | Path, *, requantize: Sequence[str] | Literal["all"] = (), revision: str | None = None
) -> OpenModel:
    """Opens a checkpoint of any supported format and compares it with its family.

    Args:
        path_or_id: a folder, a file (safetensors or GGUF), or the id of a repository on the hub.
        requantize: types of a GGUF file without an exact form that may be rounded to the nearest one, or "all".
        revision: of a repository on the hub.

    Raises:
        FormatError: the files are damaged, of an unsupported format or family, or do not fit the configuration.
        ValueError: `requantize` has no meaning.
        OSError: a file cannot be opened, or the repository cannot be reached.
    """
    checkpoint = open_checkpoint(local_path(path_or_id, revision), requantize=requantize)
    if checkpoint.config is None:
        raise format_error(checkpoint.path, "expected a config.json that names the model, found none")
    _check_counts(checkpoint)
    try:
        description = describe(checkpoint.config)
    except ValueError as error:
        raise format_error(checkpoint.path, str(error)) from error
    places = find_places(checkpoint, description)
    epsilons = {each.layer.input_norm_eps for each in places if each.layer is not None} - {None}
    if len(epsilons) > 1:
        raise format_error(
            checkpoint.path, f"expected one epsilon for all norms of inputs, found {sorted(map(str, epsilons))}"
        )
    if epsilons:
        description = replace(description, config={**description.config, "input_norm_eps": epsilons.pop()})
    return OpenModel(checkpoint, description, tuple(places))


def _check_counts(checkpoint: Checkpoint) -> None:
    """A small file may say that it has a thousand layers: refused before any of them is described."""
    names = (*checkpoint.layers, *checkpoint.tensors)
    deep = max((tensor.shape[0] for tensor in checkpoint.tensors.values() if len(tensor.shape) == 3), default=0)
    config = checkpoint.config or {}
    text = config.get("text_config")
    for values in (config, text if isinstance(text, dict) else {}):
        for key in ("num_hidden_layers", "num_experts", "num_local_experts"):
            value = values.get(key)
            if type(value) is int and value > max(len(names), deep):
                message = f"expected the tensors of {value}, found {len(names)} tensors in all"
                raise format_error(checkpoint.path, message, key)


def load_weights(
    model: OpenModel,
    builder: Builder,
    *,
    activation: Activation | None = None,
    head_bits: int | None = None,
    embedding_bits: int | None = None,
    plane_layout: bool = False,
    progress: bool | None = None,
) -> None:
    """Gives every weight to the builder. Beside those there is never more in memory than a small one for each thread,
    or some rows of a large one for each, or one large one that the format has at once.

    Args:
        model: as `open_model` gives it.
        builder: `_core.ModelBuilder(model.description.config)`.
        activation: "group", "token" or "float" in place of what the checkpoint says; "float" is the exact mode.
        head_bits: rounds an output head that the checkpoint has as floats.
        embedding_bits: the same for the embedding, and for a head that is tied to it unless head_bits differs.
        plane_layout: packs weights so that their leading planes can be read alone, for `Model.make_draft`; results keep
            their bits.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.

    Raises:
        FormatError: a tensor is damaged.
        UnsupportedSpecError: no kernel serves a layer.
        ValueError: an argument cannot be, or floats cannot be rounded.
    """
    loader, work = _reading(model, activation, head_bits, embedding_bits, plane_layout)
    num_threads = min(get_num_threads(), MOST_THREADS)
    large = [each for each in work if _is_large(each)]
    small = [each for each in work if not _is_large(each)]

    def use(ready: list[Ready]) -> None:
        for each in ready:
            each.add(builder)

    def steps() -> Iterator[None]:
        for each in sorted(large, key=lambda group: -group[0].nbytes):
            use(loader.read(each, num_threads))
            yield
        with closing(in_order(small, loader.read, use, num_threads)) as done:
            for _ in done:
                yield

    for _ in with_progress(steps(), "loading", progress, len(work)):
        pass


def read_layers(
    model: OpenModel,
    *,
    activation: Activation | None = None,
    head_bits: int | None = None,
    embedding_bits: int | None = None,
    plane_layout: bool = False,
) -> Iterator[tuple[int, Iterator[Ready]]]:
    """Every weight, layer by layer: `(number, its weights)`, -1 for those outside of the layers, which come first, the
    embedding as the last of them.

    The weights of a layer are to be used up before the next one; they are read while they are.

    Args:
        model: as of `load_weights`, like the others.
        activation: in place of what the checkpoint says.
        head_bits: of a head that is rounded.
        embedding_bits: of an embedding that is rounded.
        plane_layout: packs weights so that their leading planes can be read alone.

    Raises:
        FormatError, UnsupportedSpecError, ValueError: as `load_weights`.
    """
    loader, work = _reading(model, activation, head_bits, embedding_bits, plane_layout)
    by_layer: dict[int, list[list[Place]]] = {}
    for group in work:
        by_layer.setdefault(_layer_of(group[0].name), []).append(group)
    num_threads = min(get_num_threads(), MOST_THREADS)
    by_layer[-1].sort(key=lambda group: group[0].name == "embedding")
    for number, groups in sorted(by_layer.items()):
        yield number, _read_groups(loader, groups, num_threads)


def _read_groups(loader: _Loader, groups: list[list[Place]], num_threads: int) -> Iterator[Ready]:
    for group in groups:
        yield from loader.read(group, num_threads)


def _layer_of(name: str) -> int:
    parts = name.split(".", 2)
    return int(parts[1]) if parts[0] == "layers" else -1


def _reading(
    model: OpenModel,
    activation: Activation | None,
    head_bits: int | None,
    embedding_bits: int | None,
    plane_layout: bool,
) -> tuple[_Loader, list[list[Place]]]:
    """What reads the weights, and those that are read together."""
    places = _without_same_head(model.places) if model.description.tied else list(model.places)
    places = _with_own_head(places, head_bits, embedding_bits)
    wanted = {"head": low_bit_spec(head_bits, activation), "embedding": low_bit_spec(embedding_bits, activation)}
    return _Loader(model.checkpoint, activation, wanted, plane_layout), _stacks_together(places)


def _is_large(group: Sequence[Place]) -> bool:
    by_rows = all(place.layer is not None and reads_rows(place.layer) for place in group)
    return sum(place.nbytes for place in group) >= (LARGE_BY_ROWS if by_rows else LARGE)


@dataclass(frozen=True)
class Ready:
    """A weight that has been read: packed, or floats."""

    name: str
    array: Array
    bias: NDArray[np.float32] | None = None
    dtype: str = ""

    def add(self, builder: Builder) -> None:
        """Hands it over."""
        if self.dtype:
            builder.add_floats(self.name, self.array, self.dtype, self.bias)
        else:
            builder.add_packed(self.name, self.array, self.bias)


@dataclass
class _Loader:
    """Reads weights.

    Args:
        checkpoint: for messages.
        activation: in place of what the specs say.
        wanted: name of a weight -> what it is rounded to if the checkpoint has it as floats.
        plane_layout: as of `load_weights`.
    """

    checkpoint: Checkpoint
    activation: Activation | None
    wanted: dict[str, QuantSpec | None]
    plane_layout: bool = False

    def read(self, group: list[Place], num_threads: int = 1) -> list[Ready]:
        """Weights that lie in one tensor, or one weight."""
        first = group[0]
        if first.tensor is not None and first.tensor.name in (first.weight.stack.tensors if first.weight.stack else ()):
            return self._unstack(group, first.tensor)
        return [self._layer(each, num_threads) if each.layer is not None else self._floats(each) for each in group]

    def _layer(self, place: Place, num_threads: int) -> Ready:
        layer, weight = place.layer, place.weight
        assert layer is not None
        try:
            if weight.exact or len(weight.shape) == 1:
                codes = layer.read()
                return Ready(place.name, codes.dequantize().reshape(weight.shape), codes.bias, "F32")
            packed, bias = pack_layer(layer, self.activation, num_threads, self.plane_layout)
        except UnsupportedSpecError as error:
            raise UnsupportedSpecError(f"{self.checkpoint.path}: {layer.name}: {error}") from error
        except FormatError:
            raise
        except ValueError as error:
            raise format_error(
                self.checkpoint.path, f"expected a weight of {layer.spec} ({error})", layer.name
            ) from error
        if bias is not None and not weight.bias and not bias.any():
            bias = None  # zeros, which some tools write for layers that have none
        return Ready(place.name, packed.buffer(), bias)

    def _floats(self, place: Place) -> Ready:
        tensor, weight = place.tensor, place.weight
        assert tensor is not None
        bias = None if place.bias is None else to_float32(place.bias.read(), place.bias.dtype)
        spec = self.wanted.get(place.name)
        if spec is not None:
            try:
                return Ready(place.name, pack_floats(tensor, spec, self.plane_layout).buffer(), bias)
            except ValueError as error:
                raise ValueError(f"{self.checkpoint.path}: {tensor.name} cannot be rounded ({error})") from error
        array, dtype = tensor.read(), tensor.dtype
        if len(weight.shape) == 1:
            array, dtype = to_float32(array, dtype) + np.float32(weight.shift), "F32"
        elif dtype == "F64":
            array, dtype = to_float32(array, dtype), "F32"
        return Ready(place.name, np.ascontiguousarray(array), bias, dtype)

    def _unstack(self, group: list[Place], tensor: StoredTensor) -> list[Ready]:
        """Views of one array: nothing is copied."""
        array, dtype = tensor.read(), tensor.dtype
        if dtype == "F64":
            array, dtype = to_float32(array, dtype), "F32"
        ready = []
        for place in group:
            stack = place.weight.stack
            assert stack is not None
            rows = slice(stack.first_row, stack.first_row + place.weight.shape[0])
            ready.append(Ready(place.name, array[stack.index, rows], None, dtype))
        return ready


def _without_same_head(places: Sequence[Place]) -> list[Place]:
    """Without a head that is the embedding once more, as some tools write both of a tied pair."""
    named = {place.name: place.tensor for place in places}
    head, embedding = named.get("head"), named["embedding"]
    if head is None or embedding is None or head.dtype != embedding.dtype:
        return list(places)
    same = np.array_equal(head.read().view(np.uint8), embedding.read().view(np.uint8))
    return [place for place in places if not (same and place.name == "head")]


def _with_own_head(places: Sequence[Place], head_bits: int | None, embedding_bits: int | None) -> list[Place]:
    """With a head of its own where the float embedding is to be the head in other bits."""
    found = list(places)
    names = {place.name: place for place in places}
    embedding = names["embedding"]
    if "head" not in names and embedding.tensor is not None and head_bits not in (None, embedding_bits):
        found.append(replace(embedding, weight=replace(embedding.weight, name="head")))
    return found


def _stacks_together(places: Sequence[Place]) -> list[list[Place]]:
    """Weights of one stack are read together."""
    groups: dict[str, list[Place]] = {}
    for place in places:
        stacked = place.weight.stack is not None and place.layer is None and place.tensor is not None
        name = place.tensor.name if stacked and place.tensor is not None else place.name
        groups.setdefault(name, []).append(place)
    return list(groups.values())


@dataclass(frozen=True)
class EngineParts:
    """What an engine is made of.

    Args:
        model: of the compiled core.
        model_config: what it was made with.
        config: `config.json`.
        tokenizer: of the checkpoint.
        eos_ids: tokens that end an answer.
        chat_template: None where the checkpoint has none.
        context_length: positions of a text: those that the model was made for, or fewer.
    """

    model: Any
    model_config: dict[str, Any]
    config: dict[str, Any]
    tokenizer: Tokenizer | NoTokenizer
    eos_ids: frozenset[int]
    chat_template: ChatTemplates | None
    context_length: int


def load_engine_parts(
    path_or_id: str | Path,
    *,
    make_builder: Callable[[dict[str, Any]], Any] | None = None,
    make_model: Callable[..., Any] | None = None,
    context_length: int | None = None,
    **options: Any,
) -> EngineParts:
    """Model and tokenizer of a checkpoint.

    Args:
        path_or_id: as of `open_model`.
        make_builder: None is `_core.ModelBuilder`.
        make_model: makes the model in place of a builder, from the open one and the options of `load_weights`.
        context_length: fewer positions than the model's; None: all of them.
        options: of `open_model` and `load_weights`.

    Raises:
        FormatError, ValueError, OSError: as `open_model`, `load_weights` and `load_tokenizer`.
    """
    opening = {name: options.pop(name) for name in ("requantize", "revision") if name in options}
    opened = open_model(path_or_id, **opening)
    content = opened.description.config
    positions: int = content["context_length"]
    if context_length is not None:
        positions = integer("context_length", context_length, 1, positions)
    tokenizer = tokenizer_or_none(opened.checkpoint)
    _core.release_memory()  # a large vocabulary was ten times as much while it was read
    if make_model is not None:
        model = make_model(opened, **options)
    else:
        builder = (make_builder or _core.ModelBuilder)(content)
        load_weights(opened, builder, **options)
        model = builder.build()
    return EngineParts(
        model,
        content,
        dict(opened.checkpoint.config or {}),
        tokenizer,
        frozenset(tokenizer.eos_ids),
        tokenizer.chat_template,
        positions,
    )
