"""SentencePiece vocabularies with scores (`tokenizer.ggml.model` is `llama`) as byte-pair encodings.

Such a file lists tokens and scores and no merges: the pairs that make a token are merged in the order of the tokens'
scores. Gemma's scores do not follow its merges; the order of its tokens does.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile

SPACE = "\u2581"
GEMMA = ("gemma", "gemma2", "gemma3")
MAX_TOKEN_LENGTH = 512  # every cut of a token is looked up
MAX_MERGES_PER_TOKEN = 16  # on average; Gemma has two


def sentencepiece_parts(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    """`normalizer`, `pre_tokenizer`, `decoder` and `model` of a `tokenizer.json`.

    Raises:
        FormatError: there are no scores, or tokens that no vocabulary has.
    """
    gemma = file.architecture in GEMMA
    if gemma:
        tokens = [SPACE * len(token) if " " in token and not token.strip() else token for token in tokens]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>" if gemma else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {token: index for index, token in enumerate(tokens)},
        "merges": list(_merges(file, tokens, gemma)),
    }
    return {**_spaces(file, gemma), "model": model}


def _spaces(file: GgufFile, gemma: bool) -> dict[str, Any]:
    """How spaces are written: Gemma replaces them, the others put one before the text as well."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if gemma:
        split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        return {"normalizer": replace, "pre_tokenizer": split, "decoder": {"type": "Sequence", "decoders": back}}
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    if prefix:
        back.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    decoder = {"type": "Sequence", "decoders": back}
    if file.architecture == "phi3" and prefix:
        prepend = {"type": "Prepend", "prepend": SPACE}
        both = {"type": "Sequence", "normalizers": [prepend, replace]}
        return {"normalizer": both, "pre_tokenizer": None, "decoder": decoder}
    scheme = "first" if prefix else "never"
    words = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}
    return {"normalizer": None, "pre_tokenizer": words, "decoder": decoder}


def _merges(file: GgufFile, tokens: Sequence[str], gemma: bool) -> Iterator[list[str]]:
    """The file's merges, or every cut of a token into two others: best token first, then the longest left part."""
    if "tokenizer.ggml.merges" in file.metadata:
        yield from _merges_of_file(file, set(tokens))
        return
    index = {token: position for position, token in enumerate(tokens)}
    if gemma:
        scores = -np.arange(len(tokens))
    else:
        scores = file.numbers("tokenizer.ggml.scores")
        if len(scores) != len(tokens) or scores.dtype.kind != "f" or np.isnan(scores).any():
            message = f"expected a number for each of the {len(tokens)} tokens"
            raise format_error(file.path, message, "tokenizer.ggml.scores")
    whole, left, right = _cuts(file, index)
    sizes = np.fromiter(map(len, tokens), np.int64, len(tokens))
    wholes, lefts, rights = (np.asarray(each, np.intc) for each in (whole, left, right))
    # the last key counts most; what is equal in all keeps the order of the tokens
    for cut in np.lexsort((-sizes[rights], -sizes[lefts], -scores[wholes])).tolist():
        yield [tokens[left[cut]], tokens[right[cut]]]


def _merges_of_file(file: GgufFile, known: Set[str]) -> Iterator[list[str]]:
    key = "tokenizer.ggml.merges"
    for merge in file.strings(key):
        pair = merge.split(" ")
        if len(pair) != 2 or not {pair[0], pair[1], pair[0] + pair[1]} <= known:
            raise format_error(file.path, f"expected two tokens that make a third one, found {merge!r}", key)
        yield pair


def _cuts(file: GgufFile, index: Mapping[str, int]) -> tuple[array[int], array[int], array[int]]:
    """Positions of tokens that two others make, and of the two."""
    most = MAX_MERGES_PER_TOKEN * len(index) + MAX_TOKEN_LENGTH
    whole, left, right = array("i"), array("i"), array("i")
    find = index.get
    for token, position in index.items():
        if len(token) > MAX_TOKEN_LENGTH:
            message = f"expected tokens of at most {MAX_TOKEN_LENGTH} characters, found one of {len(token)}"
            raise format_error(file.path, message, "tokenizer.ggml.tokens")
        for cut in range(1, len(token)):
            first = find(token[:cut])
            if first is not None:
                second = find(token[cut:])
                if second is not None:
                    whole.append(position)
                    left.append(first)
                    right.append(second)
        if len(whole) > most:
            message = "expected a vocabulary, found too many ways to make its tokens"
            raise format_error(file.path, message, "tokenizer.ggml.tokens")
    return whole, left, right
