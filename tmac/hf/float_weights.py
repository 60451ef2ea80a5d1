"""The float weights of a model by parameter name, read one at a time: from memory, or from a checkpoint of any format.

A quantized checkpoint gives its weights dequantized. What transformers does to a checkpoint's tensors while it loads
them (other names, experts gathered into one tensor, a matrix cut into several) is done here too, to the tensors that
are asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from tmac.formats import gguf_file
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer
from tmac.formats.errors import format_error
from tmac.formats.gguf_shards import SHARD
from tmac.hf.floats import LazyTensor, lazy_floats
from tmac.hf.modules import own_place
from tmac.nn.experts import PROJECTIONS
from tmac.nn.swap import find_experts
from tmac.progress import with_progress

_CHUNK = 1 << 24


class FloatWeights(Protocol):
    """Parameters of a model by their names."""

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """f32 tensors. Raises FormatError where one is missing or has another shape."""

    def owned(self) -> bool:
        """Whether the tensors are copies that belong to whoever has read them."""

    def digest(self, progress: bool | None) -> str:
        """Of all weights and the configuration, hexadecimal."""


class MemoryWeights:
    """Of a model in memory; f32 ones are handed out as they are."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._tensors: dict[str, Tensor] = {**dict(model.named_buffers()), **dict(model.named_parameters())}

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """See `FloatWeights`."""
        return {name: _as_float(self._tensors[name].detach()) for name in names}

    def owned(self) -> bool:
        """See `FloatWeights`: wide ones are copies, but those are freed with the block that holds them."""
        return False

    def digest(self, progress: bool | None) -> str:
        """See `FloatWeights`."""
        hasher = hashlib.sha256(_config_text(self._model.config))
        hasher.update(type(self._model).__name__.encode())
        for name, tensor in with_progress(self._tensors.items(), "fingerprint", progress, len(self._tensors)):
            hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return hasher.hexdigest()


class CheckpointWeights:
    """Of a checkpoint on the disk, for a model of its class on the meta device.

    Args:
        checkpoint: open.
        model: gives the names and shapes.

    Raises:
        FormatError: from `read`: a tensor is missing, damaged, or has another shape.
    """

    def __init__(self, checkpoint: Checkpoint, model: Any) -> None:
        self._checkpoint, self._model = checkpoint, model
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._readers: dict[str, Callable[[], dict[str, Tensor]]] = {}
        entries: dict[str, LazyTensor] = dict(lazy_floats(checkpoint))
        fresh: dict[str, LazyTensor] = {}
        modules = dict(model.named_modules())
        fused = {name for site in find_experts(model) for name in site.names}
        gathered: dict[str, dict[tuple[int, str], QuantizedLayer]] = {}
        for name, layer in checkpoint.layers.items():
            place = own_place(name, modules, fused)
            if place is not None and place[2] != "weight":
                gathered.setdefault(place[0], {})[place[1], place[2]] = layer
                continue
            turned = type(modules.get(name)).__name__ == "Conv1D"  # GPT-2's, whose weight is the transposed one
            fresh.update(_dequantized(name, layer, turned))
        self._assign(entries, fresh)
        for module, layers in gathered.items():
            for part in ("gate_up_proj", "down_proj"):
                self._readers[f"{module}.{part}"] = self._experts_reader(module, part, layers)

    def read(self, names: Collection[str]) -> dict[str, Tensor]:
        """See `FloatWeights`."""
        found: dict[str, Tensor] = {}
        for name in names:
            if name not in found:
                if name not in self._readers:
                    raise format_error(self._checkpoint.path, "expected this tensor, found none", name)
                found.update(self._readers[name]())
            shape = tuple(found[name].shape) if name in found else None
            if shape != self._shapes[name]:
                raise format_error(self._checkpoint.path, f"expected shape {self._shapes[name]}, found {shape}", name)
        return {name: found[name] for name in names}

    def owned(self) -> bool:
        """See `FloatWeights`."""
        return True

    def digest(self, progress: bool | None) -> str:
        """See `FloatWeights`: of the bytes of the files, wherever they lie."""
        hasher = hashlib.sha256(_config_text(self._model.config))
        hasher.update(type(self._model).__name__.encode())
        for block in with_progress(_contents(self._checkpoint.path), "fingerprint", progress):
            hasher.update(block)
        return hasher.hexdigest()

    def _assign(self, stored: Mapping[str, LazyTensor], fresh: Mapping[str, LazyTensor]) -> None:
        """Finds what the model's parameters are read from; what `fresh` reads belongs to the reader."""
        entries = {**stored, **fresh}
        known = self._model.state_dict()
        prefix = self._model.base_model_prefix
        conversions = get_model_conversion_mapping(self._model)
        renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, WeightConverter)]
        by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
        groups: dict[str, list[tuple[str, str]]] = {}
        for key in sorted(entries, key=_natural):
            target, pattern = rename_source_key(key, renamings, converters, prefix, known)
            if target not in known and key in known:
                target, pattern = key, None
            if pattern is not None:
                groups.setdefault(target, []).append((key, pattern))
            elif target in known:
                self._readers[target] = _plain_reader(target, entries[key], copied=key in stored)
        for target, members in groups.items():
            converter = by_pattern[members[0][1]]
            read = self._converted_reader(target, converter, [(key, pattern, entries[key]) for key, pattern in members])
            for other in converter.target_patterns:
                self._readers[target.replace(converter.target_patterns[0], other)] = read

    def _converted_reader(
        self, target: str, converter: WeightConverter, members: list[tuple[str, str, LazyTensor]]
    ) -> Callable[[], dict[str, Tensor]]:
        def read() -> dict[str, Tensor]:
            own = copy.deepcopy(converter)
            for key, pattern, entry in members:
                own.add_tensor(target, key, pattern, entry[...].float())  # type: ignore[arg-type]
            converted = own.convert(target, model=self._model, config=self._model.config)
            return {
                name: _as_float(value[0] if isinstance(value, list) else value) for name, value in converted.items()
            }

        return read

    def _experts_reader(
        self, module: str, part: str, layers: Mapping[tuple[int, str], QuantizedLayer]
    ) -> Callable[[], dict[str, Tensor]]:
        name = f"{module}.{part}"
        parts = PROJECTIONS[:2] if part == "gate_up_proj" else PROJECTIONS[2:]

        def dense(index: int, each: str) -> Tensor:
            if (index, each) not in layers:
                raise format_error(self._checkpoint.path, f"expected {each} of expert {index}, found none", module)
            return torch.from_numpy(layers[index, each].read().dequantize())

        def read() -> dict[str, Tensor]:
            experts = range(self._shapes[name][0])
            return {name: torch.stack([torch.cat([dense(index, each) for each in parts]) for index in experts])}

        return read


def _dequantized(name: str, layer: QuantizedLayer, turned: bool) -> dict[str, LazyTensor]:
    shape = (layer.out_features, layer.in_features)

    def weight() -> Tensor:
        dense = torch.from_numpy(layer.read().dequantize())
        return dense.T.contiguous() if turned else dense

    found = {f"{name}.weight": LazyTensor(weight, shape[::-1] if turned else shape, "F32")}
    if layer.bias:
        found[f"{name}.bias"] = LazyTensor(lambda: torch.from_numpy(layer.read().bias), shape[:1], "F32")
    return found


def _plain_reader(target: str, entry: LazyTensor, *, copied: bool) -> Callable[[], dict[str, Tensor]]:
    def read() -> dict[str, Tensor]:
        tensor = entry[...]
        wide = _as_float(tensor)
        return {target: wide.clone() if copied and wide is tensor else wide}  # what is stored may lie in a mapped file

    return read


def _as_float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _natural(key: str) -> list[tuple[bool, int, str]]:
    """Numbers in their order: experts are gathered as they come."""
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in key.split(".")]


def _config_text(config: Any) -> bytes:
    left_out = ("_name_or_path", "architectures", "dtype", "transformers_version")
    values = {key: value for key, value in config.to_dict().items() if key not in left_out}
    return json.dumps(values, sort_keys=True, default=str).encode()


def _contents(path: Path) -> Iterator[bytes]:
    """The bytes of all files with weights."""
    for file in _weight_files(path):
        with file.open("rb") as stream:
            while block := stream.read(_CHUNK):
                yield block


def _weight_files(path: Path) -> list[Path]:
    first = gguf_file(path)
    if first is not None:
        match = SHARD.fullmatch(first.name)
        return sorted(first.parent.glob(f"{match['stem']}-*-of-{match['count']}.gguf")) if match else [first]
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
