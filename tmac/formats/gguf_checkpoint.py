"""GGUF files as checkpoints: packed weights under Hugging Face's names, its order of rows and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, Requantize, StoredTensor
from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_blocks import EXACT_TYPES
from tmac.formats.gguf_families import FAMILIES
from tmac.formats.gguf_family import Family, Model, Part, measure
from tmac.formats.gguf_floats import can_dequantize
from tmac.formats.gguf_header import TensorInfo
from tmac.formats.gguf_rows import ORDERS, Order
from tmac.formats.gguf_shards import Tensors, open_tensors
from tmac.formats.gguf_tensors import read_bias, stored_tensor
from tmac.formats.gguf_texts import companion_texts, special_token_ids
from tmac.formats.gguf_types import PLAIN, TYPE_NAMES
from tmac.formats.gguf_weights import Matrix, nearest_spec, read_block_rows, read_exact, read_exact_rows, requantize


def open_checkpoint(path: Path, requantize: Requantize = ()) -> Checkpoint:
    """A GGUF file, or the first of the files of a model that was split. Only headers are read.

    Quantized matrices become layers in the spec of their type, without rounding; F32, F16 and BF16 stay tensors. A file
    without a model in it (no `block_count` and no embedding) gives its tensors under their own names.

    Args:
        path: the file.
        requantize: names of types without an exact form ("IQ4_XS", "MXFP4") that are rounded to the nearest spec
            (`gguf_weights.nearest_spec`), or "all" of them. The error of each layer is in `Checkpoint.errors` once the
            layer has been read.

    Raises:
        FormatError: the file is damaged, of an unknown family, lacks tensors or has others, or one is of a type without
            an exact form that `requantize` does not name.
        ValueError: `requantize` names something else.
        OSError: a file cannot be opened.
    """
    chosen = _chosen(requantize)
    file, tensors = open_tensors(GgufFile(path))
    reader = _Reader(file, tensors, chosen)
    architecture = file.architecture
    if not any(key.endswith(".block_count") for key in file.metadata) and "token_embd.weight" not in tensors:
        reader.take_all()
        return reader.checkpoint(None, {})
    if architecture == "llama" and file.metadata.get("llama.expert_count", 0) != 0:
        architecture = "mixtral"
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise format_error(path, f"expected a model of {known}, found {architecture!r}", "general.architecture")
    family = FAMILIES[architecture]
    model = measure(file, tensors)
    config = family_config(family, model)
    reader.take_model(family, model)
    return reader.checkpoint(config, {"lm_head": family.embedding} if model.tied else {})


def family_config(family: Family, model: Model) -> dict[str, Any]:
    """`config.json` of a model."""
    config = {"architectures": [family.architecture], "model_type": family.model_type, **family.config(model)}
    config.update(special_token_ids(model.file, model.sizes["vocab"]))
    config["tie_word_embeddings"] = model.tied
    config["dtype"] = "float32"
    return config


def _chosen(requantize: Requantize) -> frozenset[str]:
    """The types that may be rounded."""
    inexact = TYPE_NAMES.keys() - EXACT_TYPES.keys() - PLAIN.keys()
    if requantize == "all":
        return frozenset(inexact)
    names = frozenset([requantize] if isinstance(requantize, str) else requantize)
    for name in sorted(names - inexact):
        why = "has an exact form" if name in EXACT_TYPES or name in PLAIN else "is no type of ggml"
        raise ValueError(f"[requantize] {name!r} {why}; choose of {', '.join(sorted(inexact))}, or 'all'")
    return names


@dataclass
class _Reader:
    """Collects the layers and tensors of a file."""

    file: GgufFile
    tensors: Tensors
    chosen: frozenset[str]
    layers: dict[str, QuantizedLayer] = field(default_factory=dict)
    plain: dict[str, StoredTensor] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)

    def checkpoint(self, config: Mapping[str, Any] | None, tied: Mapping[str, str]) -> Checkpoint:
        texts = companion_texts(self.file, config) if config is not None else {}
        return Checkpoint(
            "gguf", self.file.path, config, self.layers, self.plain, tied=tied, texts=texts, errors=self.errors
        )

    def take_all(self) -> None:
        """Every tensor under its own name."""
        for name, (file, info) in self.tensors.entries.items():
            if len(info.shape) == 2 and info.type_name not in PLAIN:
                self._layer(name.removesuffix(".weight"), Matrix(file, info, *info.shape), "linear", None)
            else:
                self.plain[name] = stored_tensor(name, file, info, info.shape)

    def take_model(self, family: Family, model: Model) -> None:
        """Every tensor of a model under Hugging Face's name.

        Raises:
            FormatError: one is missing, has another shape, or is not the family's.
        """
        parts = dict(family.top)
        for layer in range(model.sizes["layers"]):
            parts.update({f"blk.{layer}.{name}": part for name, part in family.block.items()})
        for name in self.tensors:
            if name in parts:
                number = name.split(".")[1] if name.startswith("blk.") else ""
                prefix = f"{family.prefix}.{number}." if number else ""
                self._take(model, name, parts[name], prefix)
            elif name not in family.constants:
                raise format_error(
                    self.tensors.find(name)[0].path, f"expected only tensors of a {family.model_type} model", name
                )
        for name, part in parts.items():
            if name not in self.tensors and not part.optional:
                self.tensors.find(name)

    def _take(self, model: Model, name: str, part: Part, prefix: str) -> None:
        file, info = self.tensors.find(name)
        shape = tuple(model.sizes[size] for size in part.shape)
        if 0 in shape:
            raise format_error(file.path, "expected a model with experts", name)
        in_file = (model.sizes["experts"], *shape) if part.stack else shape
        if info.shape != in_file and not (part.shape[0] == "one" and info.shape == shape[1:]):
            raise format_error(file.path, f"expected shape {list(in_file)}, found {list(info.shape)}", name)
        file.known_type(info)
        rows = ORDERS[part.rows](model.sizes, shape[0]) if part.rows else None
        target = prefix + part.target
        if part.kind == "plain" or info.type_name in PLAIN:
            self._plain(target, file, info, shape, part, rows)
            return
        bias = name.removesuffix(".weight") + ".bias"
        for index in range(in_file[0] if part.stack else 1):
            matrix = Matrix(file, info, shape[0], shape[1], index, rows)
            kind: Literal["linear", "embedding"] = "embedding" if part.kind == "embedding" else "linear"
            self._layer(
                target.format(index).removesuffix(".weight"), matrix, kind, bias if bias in self.tensors else None
            )

    def _plain(
        self, target: str, file: GgufFile, info: TensorInfo, shape: tuple[int, ...], part: Part, rows: Order | None
    ) -> None:
        if target.endswith(".bias"):
            weight = info.name.removesuffix(".bias") + ".weight"
            if weight in self.tensors and self.tensors.find(weight)[1].type_name not in PLAIN:
                return  # the layer brings it
        for index in range(info.shape[0] if part.stack else 1):
            name = target.format(index)
            self.plain[name] = stored_tensor(name, file, info, shape, index, rows, part.shift)

    def _layer(self, name: str, matrix: Matrix, kind: Literal["linear", "embedding"], bias: str | None) -> None:
        ggml = matrix.kind
        exact = EXACT_TYPES.get(ggml.name)
        if exact is None:
            self._allow(matrix)
        if matrix.out_features * matrix.in_features % ggml.block:
            message = f"expected matrices of whole blocks of {ggml.block}"
            raise format_error(matrix.file.path, message, matrix.info.name)
        spec = exact.spec if exact is not None else nearest_spec(ggml)

        def read_values() -> Any:
            return None if bias is None else read_bias(*self.tensors.find(bias), matrix)

        def read_codes() -> Any:
            if exact is not None:
                return read_exact(matrix, read_values())
            return requantize(matrix, spec, read_values(), lambda error: self.errors.__setitem__(name, error))

        by_rows = exact is not None and not matrix.in_features % ggml.block
        by_blocks = by_rows and exact is not None and exact.packs
        nbytes = matrix.nbytes + (self.tensors.find(bias)[1].nbytes or 0 if bias is not None else 0)
        self.layers[name] = QuantizedLayer(
            name,
            spec,
            matrix.out_features,
            matrix.in_features,
            bias is not None,
            nbytes,
            read_codes,
            kind,
            ggml.name,
            read_rows=(lambda begin, end: read_exact_rows(matrix, begin, end)) if by_rows else None,
            read_blocks=(lambda begin, end: read_block_rows(matrix, begin, end)) if by_blocks else None,
            read_bias=read_values if by_rows and bias is not None else None,
        )

    def _allow(self, matrix: Matrix) -> None:
        """Raises FormatError for a type that the caller has not named."""
        name = matrix.kind.name
        path = matrix.file.path
        if not can_dequantize(name):
            raise format_error(path, f"{name} cannot be dequantized", matrix.info.name)
        if name not in self.chosen:
            message = (
                f'{name} has no exact form: requantize=("{name}",) rounds it to {nearest_spec(matrix.kind).bits} bits'
            )
            raise format_error(path, message, matrix.info.name)
