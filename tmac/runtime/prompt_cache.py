"""Evaluated prompts in files: what `Engine.save_prompt` writes and `prompt_cache=` reads.

A file is safetensors: `tokens` i32 `[positions]`, `state` u8 (what the decoder saves of the sequence), and in the
header `format`, `fingerprint` of the model and the type of its cache, and `checksum` of both tensors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.files import replacing
from tmac.formats.errors import format_error
from tmac.formats.safetensors_file import open_file
from tmac.runtime.native import Ids

FORMAT = "tmac-prompt-1"
ALIGNMENT = 64

Bytes = NDArray[np.uint8]


def write_prompt(path: str | Path, tokens: Ids, state: Any, fingerprint: str) -> None:
    """Writes a file, whole or not at all; one that is there is replaced.

    Raises:
        OSError: it cannot be written.
    """
    path = Path(path)
    bytes_ = memoryview(state).cast("B")
    ids = np.ascontiguousarray(tokens, "<i4")
    header = {
        "__metadata__": {"format": FORMAT, "fingerprint": fingerprint, "checksum": _checksum(ids, bytes_)},
        "tokens": {"dtype": "I32", "shape": [len(ids)], "data_offsets": [0, ids.nbytes]},
        "state": {"dtype": "U8", "shape": [len(bytes_)], "data_offsets": [ids.nbytes, ids.nbytes + len(bytes_)]},
    }
    raw = json.dumps(header).encode()
    raw += b" " * (-(8 + len(raw)) % ALIGNMENT)
    with replacing(path) as temporary, temporary.open("xb") as file:
        for part in (len(raw).to_bytes(8, "little"), raw, ids.data, bytes_):
            file.write(part)


def read_prompt(path: str | Path, fingerprint: str, vocab_size: int) -> tuple[Ids, Bytes]:
    """The tokens and the state in a file.

    Raises:
        FormatError: it is damaged, no such file, or of another model or type of cache.
        OSError: it cannot be read.
    """
    path = Path(path)
    store = open_file(path)
    if store.metadata.get("format") != FORMAT:
        found = store.metadata.get("format")
        raise format_error(path, f"expected a prompt cache ({FORMAT}), found the format {found!r}", "format")
    if store.metadata.get("fingerprint") != fingerprint:
        raise format_error(path, "this prompt was evaluated by another model or with another cache_type", "fingerprint")
    store.expect("tokens", ("I32",), (None,))
    store.expect("state", ("U8",), (None,))
    tokens, state = np.array(store.read("tokens"), np.int32), np.ascontiguousarray(store.read("state"), np.uint8)
    if store.metadata.get("checksum") != _checksum(tokens, state.data):
        raise format_error(path, "the file is damaged: its checksum is another one", "checksum")
    if not len(tokens) or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise format_error(path, f"expected ids of {vocab_size} tokens", "tokens")
    return tokens, state


def file_version(path: str | Path) -> tuple[str, int, int]:
    """Tells versions of a file apart. Raises OSError if there is none."""
    about = Path(path).stat()
    return str(Path(path).resolve()), about.st_mtime_ns, about.st_size


def _checksum(tokens: Ids, state: memoryview) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(tokens, "<i4").data, digest_size=16)
    digest.update(state)
    return digest.hexdigest()
