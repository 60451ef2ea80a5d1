"""`tmac info PATH`: what a checkpoint is, told from its headers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tmac import QuantSpec
    from tmac.formats import Checkpoint, QuantizedLayer

MB = 1e6
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
NUMBER = re.compile(r"\d+")


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Format, layers and sizes as plain JSON values; no weight is read.

    Raises:
        FormatError: the files are damaged, or of a format that is not supported.
        OSError: a file cannot be opened.
    """
    from tmac.formats import gguf_file, open_checkpoint
    from tmac.formats.gguf_blocks import EXACT_TYPES

    gguf = path.exists() and gguf_file(path) is not None
    checkpoint = open_checkpoint(path, requantize="all" if gguf else ())
    layers, tensors = checkpoint.layers.values(), checkpoint.tensors.values()
    files = [*(file.name for file in checkpoint.files), *checkpoint.texts]
    weights = sum(layer.out_features * layer.in_features for layer in layers)
    quantized_bytes = sum(layer.nbytes for layer in layers)
    return {
        "path": str(path),
        "format": checkpoint.format,
        "architecture": architecture(checkpoint),
        "quantized_layers": len(layers),
        "quantized_weights": weights,
        "quantized_bytes": quantized_bytes,
        "bits_per_weight": 8 * quantized_bytes / weights if weights else None,
        "other_tensors": dict(Counter(tensor.dtype for tensor in tensors)),
        "other_bytes": sum(tensor.nbytes for tensor in tensors),
        "inexact_types": sorted({layer.source_type for layer in layers} - EXACT_TYPES.keys()) if gguf else [],
        "tied": dict(checkpoint.tied),
        "tokenizer": tokenizer_file(files),
        "files": files,
        "specs": groups_of({layer.name: layer.spec for layer in layers}),
        "layers": [_layer(layer) for layer in layers],
    }


def architecture(checkpoint: Checkpoint) -> str | None:
    """The model's class as `config.json` names it, else its type."""
    config = checkpoint.config or {}
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else config.get("model_type")
    return name if isinstance(name, str) else None


def tokenizer_file(names: Sequence[str]) -> str | None:
    """The file of a model that its tokenizer is read from."""
    return next((name for name in TOKENIZERS if name in names), None)


def groups_of(specs: Mapping[str, QuantSpec]) -> list[dict[str, Any]]:
    """One row for each spec: how many layers have it, and their names with ranges in place of numbers."""
    names: dict[QuantSpec, list[str]] = {}
    for name, spec in specs.items():
        names.setdefault(spec, []).append(name)
    return [
        {"spec": spec_text(spec), "count": len(group), "layers": name_ranges(group), **spec.to_dict()}
        for spec, group in names.items()
    ]


def spec_text(spec: QuantSpec) -> str:
    """The spec in a few words: "W4 group 32 offset"."""
    width = "ternary" if spec.codebook == "ternary" else f"W{spec.bits}"
    group = "per row" if spec.group_size == -1 else f"group {spec.group_size}"
    zero = f"zero {spec.fixed_zero:g}" if spec.zero_point == "fixed" else f"{spec.zero_point} zeros"
    zero = "offsets" if spec.zero_point == "offset" else "" if spec.codebook == "ternary" else zero
    activation = "" if spec.activation == "group" else f"{spec.activation} activations"
    return ", ".join(part for part in (width, group, zero, f"{spec.scale_format} scales", activation) if part)


def name_ranges(names: Iterable[str]) -> list[str]:
    """Names that differ in one number alone as one: "model.layers.{0-3,7}.mlp.up_proj".

    From the last number to the first, so that the experts of every layer become one, and then the layers.
    """
    patterns: dict[str, list[list[str]]] = {}
    for name in names:
        patterns.setdefault(NUMBER.sub("{}", name.replace("{", "{{").replace("}", "}}")), []).append(
            NUMBER.findall(name)
        )
    found = []
    for pattern, rows in patterns.items():
        for position in reversed(range(len(rows[0]))):
            merged: dict[tuple[str, ...], list[str]] = {}
            for row in rows:
                merged.setdefault((*row[:position], *row[position + 1 :]), []).append(row[position])
            rows = [[*rest[:position], _range(texts), *rest[position:]] for rest, texts in merged.items()]
        found += [pattern.format(*row) for row in rows]
    return found


def _range(texts: Sequence[str]) -> str:
    """The numbers as "{0-3,7}"; a single one as it is written."""
    if len(texts) == 1:
        return texts[0]
    runs: list[list[int]] = []
    for number in sorted({int(text) for text in texts}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f"{{{','.join(str(run[0]) if len(run) == 1 else f'{run[0]}-{run[-1]}' for run in runs)}}}"


def _layer(layer: QuantizedLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": [layer.out_features, layer.in_features],
        "bytes": layer.nbytes,
        "kind": layer.kind,
        "type": layer.source_type,
        "bias": layer.bias,
        "spec": spec_text(layer.spec),
        **layer.spec.to_dict(),
    }


def lines(facts: Mapping[str, Any], every_layer: bool) -> Iterable[str]:
    """The description as text."""
    yield f"{facts['path']}: {facts['format']}, {facts['architecture'] or 'unknown architecture'}"
    if facts["quantized_layers"]:
        size = f"{facts['quantized_bytes'] / MB:.1f} MB, {facts['bits_per_weight']:.2f} bits per weight"
        yield f"quantized: {facts['quantized_layers']} layers, {size}"
    else:
        yield "quantized: nothing; `tmac convert --bits` rounds a float model"
    kinds = ", ".join(f"{count} {dtype}" for dtype, count in facts["other_tensors"].items()) or "none"
    yield f"others:    {sum(facts['other_tensors'].values())} tensors, {facts['other_bytes'] / MB:.1f} MB ({kinds})"
    if types := ",".join(facts["inexact_types"]):
        yield f"inexact:   {types}; `tmac convert --requantize {types}` rounds to what is said below"
    for name, target in facts["tied"].items():
        yield f"shared:    {name} has the weight of {target}"
    yield f"tokenizer: {facts['tokenizer'] or 'none'}"
    if every_layer:
        yield ""
        for layer in facts["layers"]:
            shape = "x".join(map(str, layer["shape"]))
            kind = f" {layer['type']}" if layer["type"] else ""
            yield f"{layer['name']}  {shape}{kind}  {layer['spec']}"
        return
    for group in facts["specs"]:
        yield ""
        yield f"{group['count']} x {group['spec']}"
        yield from (f"  {name}" for name in group["layers"])
