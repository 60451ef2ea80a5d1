"""The packed cache file of a checkpoint: found, or made."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac import _core
from tmac.files import replacing
from tmac.progress import with_progress
from tmac.runtime.loading import OpenModel, read_layers
from tmac.runtime.streaming.packed_index import PackedIndex, read_index, read_vectors
from tmac.runtime.streaming.packed_writer import PackedWriter
from tmac.spec import QuantSpec
from tmac.tuner import tuned_kernels
from tmac.tuning_cache import cache_folder

FORMAT = 1
SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})")
WEIGHTS = (".safetensors", ".gguf", ".json")


@dataclass(frozen=True)
class PackedFile:
    """A packed cache file that fits a checkpoint, this CPU and this version.

    Args:
        path: of the file.
        size: in bytes.
        modified_ns: its time of change; with `size` what tells that it was changed since.
        index: what it holds.
        vectors: norms and biases by name.
    """

    path: Path
    size: int
    modified_ns: int
    index: PackedIndex
    vectors: Mapping[str, NDArray[np.float32]]


def packed_file(model: OpenModel, options: Mapping[str, Any], progress: bool | None = None) -> PackedFile:
    """The packed file of a checkpoint, made if there is none that fits.

    It is in the user's cache folder (`TMAC_CACHE_DIR`), under a name that depends on where the checkpoint is and on the
    options: a file of another state of the checkpoint, another version or another CPU is replaced. While it is made
    there is never more in memory than one layer, or one matrix outside of the layers.

    Args:
        model: as `open_model` gives it.
        options: `activation`, `head_bits`, `embedding_bits` and `plane_layout` of `load_weights`.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.

    Raises:
        FormatError, UnsupportedSpecError, ValueError: as `load_weights`.
        OSError: the file cannot be written.
    """
    path = packed_path(model, options)
    identity = identity_of(model, options)
    with contextlib.suppress(OSError, ValueError):
        return open_packed(path, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_packed(path, model, options, identity, progress)
    try:
        return open_packed(path, identity)
    except ValueError as error:
        raise OSError(f"{path}: cannot be read back ({error})") from error


def open_packed(path: Path, identity: Mapping[str, Any]) -> PackedFile:
    """Reads header, index and vectors.

    Raises:
        ValueError: the file is damaged, or foreign: made from or for something else than `identity` says, or packed
            for other kernels than those that would be chosen now.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        index = read_index(file, status.st_size)
        if index.identity != identity:
            raise ValueError("it was made from or for something else")
        for head in index.heads:
            spec = QuantSpec(**head.spec)
            kernels = tuned_kernels(spec, head.out_features, head.in_features)
            kernels = kernels or ",".join(_core.candidate_kernels(spec)[0])
            if head.kernels != kernels:
                raise ValueError(f"packed for {head.kernels}, now {kernels} would be chosen")
        vectors = read_vectors(file, index)
    return PackedFile(path, status.st_size, status.st_mtime_ns, index, vectors)


def write_packed(
    path: Path, model: OpenModel, options: Mapping[str, Any], identity: Mapping[str, Any], progress: bool | None = None
) -> None:
    """Makes the file, as a whole or not at all.

    Raises:
        FormatError, UnsupportedSpecError, ValueError: as `load_weights`.
        OSError: it cannot be written.
    """
    count = model.description.config["num_layers"] + 1
    with replacing(path) as temporary, temporary.open("wb") as file:
        writer = PackedWriter(file)

        def steps() -> Iterator[None]:
            for number, weights in read_layers(model, **options):
                if number < 0:
                    for weight in weights:
                        writer.top(weight)
                else:
                    writer.layer(weights)
                yield

        for _ in with_progress(steps(), "packing", progress, count):
            _core.release_memory()
        writer.finish(identity)


def packed_path(model: OpenModel, options: Mapping[str, Any]) -> Path:
    """Where the file is, or would be."""
    source = model.checkpoint.path.resolve()
    about = json.dumps([str(source), dict(options)], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:16]
    return cache_folder() / "packed" / f"{source.stem[:80]}-{digest}.tmacpack"


def identity_of(model: OpenModel, options: Mapping[str, Any]) -> dict[str, Any]:
    """What a file is made from and for: the files of the checkpoint, the options, this version and this CPU."""
    features = [name for name, has in _core.cpu_features().items() if has]
    identity = {
        "format": FORMAT,
        "version": _core.__version__,
        "features": features,
        "options": dict(options),
        "source": [[each.name, *_state(each)] for each in source_files(model.checkpoint.path)],
    }
    return dict(json.loads(json.dumps(identity)))


def source_files(path: Path) -> list[Path]:
    """The files that hold the weights of a checkpoint and say what they mean."""
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.suffix in WEIGHTS and each.is_file())
    shard = SHARD.fullmatch(path.stem)
    if shard is None:
        return [path]
    of_all = re.compile(rf"{re.escape(shard[1])}-[0-9]{{5}}-of-{shard[2]}{re.escape(path.suffix)}")
    return sorted(each for each in path.parent.iterdir() if of_all.fullmatch(each.name))


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
