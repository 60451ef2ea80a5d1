"""SentencePiece vocabularies with scores (`tokenizer.ggml.model` is `llama`) as byte-pair encodings.

Such a file lists tokens and scores and no merges: the pairs that make a token are merged in the order of the tokens'
scores. Gemma's scores do not follow its merges; the order of its tokens does.
"""

from __future__ import annotations

from array import array
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_merges import Merges

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
    vocab = {token: index for index, token in enumerate(tokens)}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": "<unk>" if gemma else None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": _merges(file, tokens, vocab, gemma),
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


def _merges(file: GgufFile, tokens: Sequence[str], index: Mapping[str, int], gemma: bool) -> Merges:
    """The file's merges, or every cut of a token into two others: best token first, then the longest left part."""
    if "tokenizer.ggml.merges" in file.metadata:
        return merges_in_file(file, index)
    if gemma:
        scores = -np.arange(len(tokens), dtype=np.float64)
    else:
        scores = file.numbers("tokenizer.ggml.scores")
        if len(scores) != len(tokens) or scores.dtype.kind != "f" or np.isnan(scores).any():
            message = f"expected a number for each of the {len(tokens)} tokens"
            raise format_error(file.path, message, "tokenizer.ggml.scores")
    positions, cuts = _all_cuts(file, tokens, index)
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    right = lengths[positions] - cuts
    order = np.lexsort((-right, -cuts, -scores[positions]))  # of equal ones, as they are
    return Merges(tokens, positions[order], cuts[order])


def _all_cuts(
    file: GgufFile, tokens: Sequence[str], index: Mapping[str, int]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Of every way to make a token of two others, the number of the token and the length of the left one."""
    longest = max(map(len, tokens), default=0)
    if longest > MAX_TOKEN_LENGTH:
        message = f"expected tokens of at most {MAX_TOKEN_LENGTH} characters, found one of {longest}"
        raise format_error(file.path, message, "tokenizer.ggml.tokens")
    positions, cuts = array("i"), array("i")
    for token, position in index.items():
        for cut in range(len(token) - 1, 0, -1):
            if token[:cut] in index and token[cut:] in index:
                positions.append(position)
                cuts.append(cut)
        if len(cuts) > MAX_MERGES_PER_TOKEN * len(tokens) + MAX_TOKEN_LENGTH:
            message = "expected a vocabulary, found too many ways to make its tokens"
            raise format_error(file.path, message, "tokenizer.ggml.tokens")
    return np.array(positions, np.int32), np.array(cuts, np.int32)


def merges_in_file(file: GgufFile, known: Container[str]) -> Merges:
    """`tokenizer.ggml.merges`. Raises FormatError for what are not two tokens that make a third one."""
    key = "tokenizer.ggml.merges"
    texts = file.strings(key)
    cuts = np.empty(len(texts), np.int32)
    for number, text in enumerate(texts):
        left, space, right = text.partition(" ")
        if not space or " " in right or not (left in known and right in known and left + right in known):
            raise format_error(file.path, f"expected two tokens that make a third one, found {text!r}", key)
        cuts[number] = len(left)
    return Merges(texts, np.arange(len(texts), dtype=np.int32), cuts, 1)
