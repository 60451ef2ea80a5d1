"""The tokenizer inside a GGUF file, as the content of a Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile

CONTROL, USER_DEFINED = 3, 4
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}

# tokenizer.ggml.pre -> how text is cut before the merges (llama.cpp, llama-vocab.cpp: the regular expressions there
# are these two, with the digits one by one in the second).
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]},
}


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer as plain data.

    Args:
        json: the content of `tokenizer.json`.
        special: `bos_token`, `eos_token`, `pad_token`, `unk_token` where the file names them.
        chat_template: a Jinja template, or None.
    """

    json: dict[str, Any]
    special: dict[str, str]
    chat_template: str | None


def read_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Builds a byte-level BPE tokenizer from the metadata.

    Raises:
        FormatError: keys are missing or inconsistent, or the tokenizer is of another kind.
    """
    model = file.get("tokenizer.ggml.model", str)
    if model != "gpt2":
        raise format_error(
            file.path, f"expected the byte-level BPE tokenizer gpt2, found {model!r}", "tokenizer.ggml.model"
        )
    pre = file.get("tokenizer.ggml.pre", str)
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise format_error(file.path, f"expected one of {known}, found {pre!r}", "tokenizer.ggml.pre")
    tokens = file.strings("tokenizer.ggml.tokens")
    special = _special_tokens(file, tokens)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(file, tokens),
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": _post_processor(file, tokens, special),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(file, tokens),
    }
    template = file.get("tokenizer.chat_template", str) if "tokenizer.chat_template" in file.metadata else None
    return GgufTokenizer(content, special, template)


def _model(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    key = "tokenizer.ggml.merges"
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise format_error(file.path, "expected every token once, found one twice", "tokenizer.ggml.tokens")
    merges = [merge.split(" ") for merge in file.strings(key)]
    for merge in merges:
        if len(merge) != 2 or not {merge[0], merge[1], merge[0] + merge[1]} <= vocab.keys():
            raise format_error(file.path, f"expected two tokens that make a third one, found {' '.join(merge)!r}", key)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }


def _added_tokens(file: GgufFile, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """Tokens that are never split: control tokens, which decoding may skip, and the user's own."""
    types = file.numbers("tokenizer.ggml.token_type").tolist()
    if len(types) != len(tokens):
        message = f"expected a type for each of the {len(tokens)} tokens, found {len(types)}"
        raise format_error(file.path, message, "tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **flags, "special": kind == CONTROL}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def special_token_id(file: GgufFile, name: str, num_tokens: int) -> int | None:
    """`bos`, `eos`, `padding` or `unknown` as an index into the tokens, None where the file has none.

    Raises:
        FormatError: it is not the index of a token.
    """
    key = f"tokenizer.ggml.{name}_token_id"
    if key not in file.metadata:
        return None
    index = file.get(key, int)
    if not 0 <= index < num_tokens:
        raise format_error(file.path, f"expected the index of one of {num_tokens} tokens, found {index}", key)
    return index


def _special_tokens(file: GgufFile, tokens: Sequence[str]) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    found = {target: special_token_id(file, name, len(tokens)) for name, target in names.items()}
    return {target: tokens[index] for target, index in found.items() if index is not None}


def _post_processor(file: GgufFile, tokens: Sequence[str], special: dict[str, str]) -> dict[str, Any] | None:
    if not file.get("tokenizer.ggml.add_bos_token", bool, False) or "bos_token" not in special:
        return None
    bos = special["bos_token"]
    first = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}},
    }
