"""Losses of a reference on disk: a float model is evaluated once, however many models are compared with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from tmac.evaluation.metrics import token_losses
from tmac.evaluation.scorer import Losses, Scorer
from tmac.evaluation.windows import Windows, bos_of
from tmac.files import replacing

PROBE_TOKENS = 16
VERSION = b"tmac-losses-1"


def cached_losses(
    scorer: Scorer,
    ids: Sequence[int],
    window: int = 512,
    bos: bool | None = None,
    progress: bool | None = False,
    folder: Path | None = None,
) -> Losses:
    """`token_losses` from a file in `folder`, or evaluated and written there; None: without files.

    A file belongs to the bits of the logits that the model gives for a few tokens, and to the windows: another model,
    text or number of threads is another file. One that is damaged is evaluated again; one that cannot be written is
    left out.

    Raises:
        ValueError: as `token_losses`.
    """
    if folder is None:
        return token_losses(scorer, ids, window, bos, progress)
    windows = Windows(ids, window, bos_of(scorer, bos))
    path = folder / f"{_key(scorer, windows)}.losses"
    found = _read(path, windows.predicted)
    if found is None:
        found = token_losses(scorer, ids, window, bos, progress)
        with suppress(OSError):
            _write(path, found)
    return found


def _key(scorer: Scorer, windows: Windows) -> str:
    probe = [(7919 * place + 13) % scorer.vocab_size for place in range(min(PROBE_TOKENS, scorer.context_length))]
    digest = hashlib.blake2b(VERSION, digest_size=16)
    digest.update(np.ascontiguousarray(scorer.logits(probe)).data)
    digest.update(f"{windows.window} {windows.bos_id} ".encode())
    digest.update(np.array(windows.ids, np.int64).data)
    return digest.hexdigest()


def _read(path: Path, count: int) -> Losses | None:
    """The losses of a file, None where there is none of so many, or it is damaged."""
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    checksum, data = raw[:16], raw[16:]
    if checksum != _checksum(data) or len(data) != 8 * count:
        return None
    return np.frombuffer(data, "<f8").astype(np.float64)


def _write(path: Path, losses: Losses) -> None:
    data = losses.astype("<f8").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(_checksum(data) + data)


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
