"""SentencePiece vocabularies with scores (`tokenizer.ggml.model` is `llama`) as byte-pair encodings.

Such a file lists tokens and scores and no merges: the pairs that make a token are merged in the order of the tokens'
scores. Gemma's scores do not follow its merges; the order of its tokens does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile

SPACE = "\u2581"
GEMMA = ("gemma", "gemma2", "gemma3")
MAX_TOKEN_LENGTH = 512  # every cut of a token is looked up
MAX_MERGES_PER_TOKEN = 16  # on average; Gemma has two

Merge = tuple[str, str]


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
        "merges": [list(merge) for merge in _merges(file, tokens, gemma)],
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


def _merges(file: GgufFile, tokens: Sequence[str], gemma: bool) -> list[Merge]:
    """The file's merges, or every cut of a token into two others: best token first, then the longest left part."""
    if "tokenizer.ggml.merges" in file.metadata:
        key = "tokenizer.ggml.merges"
        pairs = [merge.split(" ") for merge in file.strings(key)]
        known = set(tokens)
        for pair in pairs:
            if len(pair) != 2 or not {pair[0], pair[1], pair[0] + pair[1]} <= known:
                message = f"expected two tokens that make a third one, found {' '.join(pair)!r}"
                raise format_error(file.path, message, key)
        return [(pair[0], pair[1]) for pair in pairs]
    index = {token: position for position, token in enumerate(tokens)}
    if gemma:
        scores: list[float] = [-position for position in range(len(tokens))]
    else:
        scores = file.numbers("tokenizer.ggml.scores").tolist()
        if len(scores) != len(tokens) or not all(isinstance(score, float) and score == score for score in scores):
            message = f"expected a number for each of the {len(tokens)} tokens"
            raise format_error(file.path, message, "tokenizer.ggml.scores")
    found: list[tuple[float, int, int, Merge]] = []
    for token, position in index.items():
        score = scores[position]
        cuts = sorted(_cuts(file, token, index), key=lambda merge: (index[merge[0]], index[merge[1]]))
        found.extend((-score, -len(left), -len(right), (left, right)) for left, right in cuts)
        if len(found) > MAX_MERGES_PER_TOKEN * len(tokens) + MAX_TOKEN_LENGTH:
            message = "expected a vocabulary, found too many ways to make its tokens"
            raise format_error(file.path, message, "tokenizer.ggml.tokens")
    found.sort(key=lambda item: item[:3])
    return [item[3] for item in found]


def _cuts(file: GgufFile, token: str, index: dict[str, int]) -> Iterator[Merge]:
    """The pairs of tokens that make a token."""
    if len(token) > MAX_TOKEN_LENGTH:
        message = f"expected tokens of at most {MAX_TOKEN_LENGTH} characters, found one of {len(token)}"
        raise format_error(file.path, message, "tokenizer.ggml.tokens")
    for cut in range(1, len(token)):
        left, right = token[:cut], token[cut:]
        if left in index and right in index:
            yield left, right
