"""Writes any checkpoint as our own format (docs/format.md), tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tmac.codes import FormatError
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, StoredTensor
from tmac.formats.errors import format_error
from tmac.formats.in_order import in_order
from tmac.formats.json_file import read_json
from tmac.formats.new_folder import new_folder
from tmac.formats.safetensors_writer import OutTensor, SafetensorsWriter, header_bytes, write_file
from tmac.formats.tmac_config import LayerEntry, quantization_config

MAX_SHARD_BYTES = 5_000_000_000
PARTS = ("planes", "trits", "scales", "zeros", "offsets", "super_scales", "super_offsets", "perm", "bias")
LARGEST_PARTS = 7  # of these in one layer
DTYPES = {"uint8": "U8", "int8": "I8", "float16": "F16", "float32": "F32", "int32": "I32"}
DIMENSIONS = 3

Item = QuantizedLayer | StoredTensor


@dataclass
class Written:
    """What was written.

    Args:
        path: the folder.
        nbytes: of all tensors.
        layers: the quantized weights as they were written.
        seconds: what reading and writing the weights took, until they are on the disk.
        companions: names of the files beside the weights.
        left_out: name -> why a file that the checkpoint has in another form could not be written.
    """

    path: Path
    nbytes: int = 0
    seconds: float = 0.0
    layers: dict[str, LayerEntry] = field(default_factory=dict)
    companions: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def write_checkpoint(
    checkpoint: Checkpoint,
    out: str | Path,
    *,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Callable[[Iterator[Item], int], Iterator[Item]] = lambda items, _: items,
) -> Written:
    """Writes `checkpoint` into the folder `out`, which appears when it is complete.

    Two threads read, pack and write; each holds one weight.

    Args:
        checkpoint: an open checkpoint with at least one quantized layer.
        out: the folder to make.
        force: replace `out` where it is a checkpoint of ours.
        max_shard_bytes: from this size on the weights are split into several files.
        progress: wraps the iterator over the finished weights, of which there are as many as the second argument says.

    Raises:
        ValueError: no layer is quantized.
        FormatError: a weight is damaged, or `out` must not be replaced.
        OSError: `out` exists and `force` is False, the disk is full, ...
    """
    out = Path(out)
    items: list[Item] = [*checkpoint.layers.values(), *checkpoint.tensors.values()]
    _check_names(checkpoint)
    if force:
        check_replaceable(out.resolve(), checkpoint.path)
    written = Written(out)
    started = time.perf_counter()
    with new_folder(out, replace=force) as folder:
        room = header_bytes(_header_names(checkpoint))
        with closing(SafetensorsWriter(folder, room, max_shard_bytes)) as writer:

            def use(result: tuple[list[OutTensor], LayerEntry | None]) -> None:
                tensors, entry = result
                writer.add(tensors)
                if entry is not None:
                    written.layers[tensors[0].name.rpartition(".")[0]] = entry

            with closing(in_order(items, _prepare, use)) as finished:  # no thread writes when the folder goes
                for _ in progress(finished, len(items)):
                    pass
            writer.finish()
            written.nbytes, written.seconds = writer.nbytes, time.perf_counter() - started
        write_file(folder / "config.json", _config(checkpoint, written))
        _write_companions(checkpoint, folder, written)
    return written


def _prepare(item: Item) -> tuple[list[OutTensor], LayerEntry | None]:
    if isinstance(item, StoredTensor):
        return [OutTensor(item.name, item.dtype, item.read())], None
    codes = item.read()
    entry = LayerEntry(codes.spec, codes.in_features, item.kind, item.input_norm_eps)
    tensors = codes.to_tensors(f"{item.name}.")
    return [OutTensor(name, DTYPES[array.dtype.name], array) for name, array in tensors.items()], entry


def _check_names(checkpoint: Checkpoint) -> None:
    """A tensor that is passed on must not look like a part of a quantized weight."""
    for name in checkpoint.tensors:
        layer, _, part = name.rpartition(".")
        if part in ("planes", "trits") or (part in PARTS and layer in checkpoint.layers):
            raise format_error(checkpoint.path, "expected no tensor of a name that our format gives a meaning", name)


def check_replaceable(out: Path, source: Path) -> None:
    """Replacing removes a folder: only one that we wrote, and not the one that is being read. Raises FormatError."""
    if not os.path.lexists(out):
        return
    config = out / "config.json"
    try:
        ours = read_json(config)["quantization_config"]["quant_method"] == "tmac"
    except (FormatError, OSError, KeyError, TypeError):
        ours = False
    if not ours or any(child.is_dir() for child in out.iterdir()):
        raise format_error(out, "expected a checkpoint of our own format to replace, found something else")
    if source.resolve() == out or out in source.resolve().parents:
        raise format_error(out, "expected another folder than the one that is read")


def _header_names(checkpoint: Checkpoint) -> Iterator[tuple[str, int]]:
    for layer in checkpoint.layers.values():
        yield from ((f"{layer.name}.super_offsets", DIMENSIONS) for _ in range(LARGEST_PARTS))
    for tensor in checkpoint.tensors.values():
        yield tensor.name, len(tensor.shape)


def _config(checkpoint: Checkpoint, written: Written) -> bytes:
    floats = [
        name.removesuffix(".weight")
        for name, tensor in checkpoint.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    ]
    quantization = quantization_config(written.layers, floats, checkpoint.tied)
    content: dict[str, Any] = {**(checkpoint.config or {}), "quantization_config": quantization}
    return json.dumps(content, indent=2).encode()


def _write_companions(checkpoint: Checkpoint, folder: Path, written: Written) -> None:
    for file in checkpoint.files:
        _copy(file, folder / file.name)
        written.companions.append(file.name)
    for name, text in checkpoint.texts.items():
        try:
            content = text()
        except FormatError as error:  # a tokenizer that only this model's own files have: the weights are fine
            written.left_out[name] = str(error)
            continue
        write_file(folder / name, content.encode())
        written.companions.append(name)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
