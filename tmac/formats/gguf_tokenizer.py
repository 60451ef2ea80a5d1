"""The tokenizer inside a GGUF file, as the content of a Hugging Face `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_merges import vocabulary_json
from tmac.formats.gguf_sentencepiece import merges_in_file, sentencepiece_parts

CONTROL, USER_DEFINED = 3, 4
MAX_TOKENS = 1 << 20
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> dict[str, Any]:
    pieces = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [pieces, {**BYTE_LEVEL, "use_regex": False}]}


LLAMA3 = _split(rf"{ENDINGS}|{WORDS}|\p{{N}}{{1,3}}|{REST}")
QWEN2 = _split(rf"{ENDINGS}|{WORDS}|\p{{N}}|{REST}")

# tokenizer.ggml.pre -> how text is cut before the merges (llama.cpp, llama-vocab.cpp: the regular expressions there
# are these). "default" is what files say whose converter did not know; llama.cpp warns and cuts as for GPT-2.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "default": BYTE_LEVEL,
    "gpt-2": BYTE_LEVEL,
    "gpt2": BYTE_LEVEL,
    "olmo": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": [DIGITS, BYTE_LEVEL]},
    "llama-bpe": LLAMA3,
    "llama3": LLAMA3,
    "llama-v3": LLAMA3,
    "smaug-bpe": LLAMA3,
    "qwen2": QWEN2,
    "deepseek-r1-qwen": QWEN2,
}


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer as plain data.

    Args:
        json: the content of `tokenizer.json`; its merges are a sequence of their own.
        special: `bos_token`, `eos_token`, `pad_token`, `unk_token` where the file names them.
        chat_template: a Jinja template, or None.
    """

    json: dict[str, Any]
    special: dict[str, str]
    chat_template: str | None

    def text(self) -> str:
        """`tokenizer.json`."""
        return vocabulary_json(self.json)


def read_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Builds a byte-level or SentencePiece BPE tokenizer from the metadata.

    Raises:
        FormatError: keys are missing or inconsistent, or the tokenizer is of another kind.
    """
    model = file.get("tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        message = f"expected the tokenizer gpt2 (byte-level) or llama (SentencePiece), found {model!r}"
        raise format_error(file.path, message, "tokenizer.ggml.model")
    tokens = file.strings("tokenizer.ggml.tokens")
    if len(tokens) > MAX_TOKENS:
        message = f"expected at most {MAX_TOKENS} tokens, found {len(tokens)}"
        raise format_error(file.path, message, "tokenizer.ggml.tokens")
    tokens = list(tokens)
    parts = _byte_level(file, tokens) if model == "gpt2" else sentencepiece_parts(file, tokens)
    special = special_tokens(file, tokens)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(file, tokens, parts["model"]["vocab"], set(special.values())),
        "normalizer": None,
        "post_processor": _post_processor(file, tokens, special, model == "llama"),
        **parts,
    }
    template = file.get("tokenizer.chat_template", str) if "tokenizer.chat_template" in file.metadata else None
    return GgufTokenizer(content, special, template)


def _byte_level(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    """`pre_tokenizer`, `decoder` and `model` of a byte-level tokenizer."""
    pre = file.get("tokenizer.ggml.pre", str, "default")
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise format_error(file.path, f"expected one of {known}, found {pre!r}", "tokenizer.ggml.pre")
    return {
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _model(file, tokens),
    }


def _model(file: GgufFile, tokens: Sequence[str]) -> dict[str, Any]:
    spelling = byte_spelling()
    alphabet = set(spelling)
    vocab = {
        token if alphabet.issuperset(token) else "".join(spelling[byte] for byte in token.encode()): index
        for index, token in enumerate(tokens)
    }
    if len(vocab) != len(tokens):
        raise format_error(file.path, "expected every token once, found one twice", "tokenizer.ggml.tokens")
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
        "merges": merges_in_file(file, vocab),
    }


def byte_spelling() -> list[str]:
    """The character that stands for each byte: itself where it can be printed, else one from 256 on (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _added_tokens(
    file: GgufFile, tokens: Sequence[str], vocab: Mapping[str, int], special: Set[str]
) -> list[dict[str, Any]]:
    """Tokens that are never split: control tokens and those with a role, which decoding may skip, and the user's own.

    In a byte-level vocabulary a token that is spelled with other characters has been respelled, and is not one of them.
    """
    types = file.numbers("tokenizer.ggml.token_type").tolist()
    if len(types) != len(tokens):
        message = f"expected a type for each of the {len(tokens)} tokens, found {len(types)}"
        raise format_error(file.path, message, "tokenizer.ggml.token_type")
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **flags, "special": kind == CONTROL or token in special}
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if (kind in (CONTROL, USER_DEFINED) or token in special) and vocab.get(token) == index
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


def special_tokens(file: GgufFile, tokens: Sequence[str]) -> dict[str, str]:
    """`bos_token`, `eos_token`, `pad_token` and `unk_token` where the file names them. Raises FormatError."""
    names = {"bos": "bos_token", "eos": "eos_token", "padding": "pad_token", "unknown": "unk_token"}
    found = {target: special_token_id(file, name, len(tokens)) for name, target in names.items()}
    return {target: tokens[index] for target, index in found.items() if index is not None}


def _post_processor(file: GgufFile, tokens: Sequence[str], special: Mapping[str, str], add_bos: bool) -> dict[str, Any]:
    """Puts the first and last tokens around a text. SentencePiece files that do not say so want the first one."""
    wanted = {
        "bos_token": file.get("tokenizer.ggml.add_bos_token", bool, add_bos),
        "eos_token": file.get("tokenizer.ggml.add_eos_token", bool, False),
    }
    around = {name: special[name] for name, add in wanted.items() if add and name in special}

    def text(name: str, number: int) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = [{"Sequence": {"id": name, "type_id": number}}]
        if "bos_token" in around:
            items.insert(0, {"SpecialToken": {"id": around["bos_token"], "type_id": number}})
        if "eos_token" in around:
            items.append({"SpecialToken": {"id": around["eos_token"], "type_id": number}})
        return items

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": [*text("A", 0), *text("B", 1)],
        "special_tokens": {
            token: {"id": token, "ids": [tokens.index(token)], "tokens": [token]} for token in around.values()
        },
    }
