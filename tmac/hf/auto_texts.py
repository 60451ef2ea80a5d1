"""Texts of the automatic flow as token ids in windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tmac.evaluation.texts import load_text
from tmac.evaluation.windows import Windows
from tmac.quant.codes_cache import digest

CALIBRATION, HELD_OUT = "package:gensim/wikipedia", "package:evals/owt"
CHARACTERS_PER_TOKEN = 16  # more than any text has on average


def token_ids(text: Any, tokenizer: Any, count: int, role: str) -> list[int]:
    """The first `count` tokens of a text, without special ones.

    Args:
        text: a file or a package's text as for `tmac.evaluation.texts.load_text`, several texts in a list, or token
            ids.
        tokenizer: of the model; None where `text` are ids.
        count: tokens to have.
        role: for messages, "calibration".

    Raises:
        ValueError: the text is too short, or there is no tokenizer for it.
        OSError: the file cannot be read.
    """
    if isinstance(text, (str, Path)):
        whole = load_text(text, count * CHARACTERS_PER_TOKEN)
    elif isinstance(text, Sequence) and text and all(isinstance(each, str) for each in text):
        whole = "\n\n".join(text)
    else:
        return _first(_checked(text, role), count, role)
    if tokenizer is None:
        raise ValueError(f"[auto_quantize] there is no tokenizer for the {role} text: give token ids, or a tokenizer")
    ids = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
    return _first(list(ids), count, role)


def _checked(ids: Any, role: str) -> list[int]:
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.dtype.kind not in "iu" or not array.size:
        raise ValueError(f"[auto_quantize] expected the {role} text as a file, texts or token ids")
    return [int(token) for token in array.reshape(-1)]


def _first(ids: list[int], count: int, role: str) -> list[int]:
    if len(ids) < count:
        raise ValueError(
            f"[auto_quantize] the {role} text has {len(ids)} tokens, expected at least {count}: give a longer one, or "
            f"ask for fewer with {role}_tokens"
        )
    return ids[:count]


def windows(ids: list[int], window: int, bos_id: int | None) -> Tensor:
    """Full windows of a text, int64 `[windows, window]`, each beginning with `bos_id` where there is one.

    Raises:
        ValueError: the text does not fill one.
    """
    found = [each for each in Windows(ids, window, bos_id) if len(each) == window]
    if not found:
        raise ValueError(f"[auto_quantize] {len(ids)} tokens do not fill a window of {window}")
    return torch.tensor(found)


def bos_of(tokenizer: Any) -> int | None:
    """The token that the tokenizer begins a text with."""
    first = getattr(tokenizer, "bos_token_id", None)
    if tokenizer is None or first is None:
        return None
    begins = tokenizer("a")["input_ids"][:1] == [first]
    return int(first) if begins else None


def fingerprint(ids: Sequence[int], *about: Any) -> str:
    """A hash of token ids and plain values."""
    return digest(list(ids), *about)[:32]
