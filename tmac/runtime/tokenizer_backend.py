"""The `tokenizers` package's object of a `tokenizer.json`, made without the memory that reading a large one takes.

Its own reader holds Gemma's vocabulary of 262,144 tokens in half a gigabyte until it is done; given the parts, it takes
half of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, overload

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

LARGE = 4 << 20  # characters; what is shorter is left to the package
OPTIONS = (
    "dropout",
    "unk_token",
    "continuing_subword_prefix",
    "end_of_word_suffix",
    "fuse_unk",
    "byte_fallback",
    "ignore_merges",
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def make_backend(read: Callable[[], str]) -> Tokenizer:
    """`Tokenizer.from_str(read())`, and what the two raise. `read` may be called again."""
    text = read()
    if len(text) < LARGE:
        return Tokenizer.from_str(text)
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    del text
    return _of_parts(content) or Tokenizer.from_str(read())


def _of_parts(content: Any) -> Tokenizer | None:
    """A byte-pair encoding whose parts are as they are written today; None for all else."""
    try:
        model, added = content["model"], content["added_tokens"]
        vocab, merges = model["vocab"], model["merges"]
        fits = (
            model["type"] == "BPE"
            and model.keys() <= {"type", "vocab", "merges", *OPTIONS}
            and all(type(merge) is list and list(map(type, merge)) == [str, str] for merge in merges)
            and _ids_follow(added, vocab)
        )
        tokens = [AddedToken(token["content"], **{flag: token[flag] for flag in FLAGS}) for token in added]
    except (LookupError, TypeError, AttributeError):
        return None
    if not fits:
        return None
    content["model"] = {**model, "vocab": {}, "merges": []}
    content["added_tokens"] = []
    backend = Tokenizer.from_str(json.dumps(content))
    options = {name: model[name] for name in OPTIONS if model.get(name) is not None}
    backend.model = BPE(vocab=vocab, merges=_Pairs(merges), **options)
    backend.add_tokens(tokens)
    return backend


def _ids_follow(added: Sequence[dict[str, Any]], vocab: dict[str, int]) -> bool:
    """Whether added tokens have the numbers that they get when they are added in this order."""
    new = len(vocab)
    for token in added:
        expected = vocab.get(token["content"], new)
        if token["id"] != expected:
            return False
        new += expected == new
    return True


class _Pairs(Sequence[tuple[str, str]]):
    """Merges as the package takes them, one at a time."""

    def __init__(self, merges: list[list[str]]) -> None:
        self._merges = merges

    def __len__(self) -> int:
        return len(self._merges)

    @overload
    def __getitem__(self, index: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, str]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Pairs(self._merges[index])
        left, right = self._merges[index]
        return left, right
