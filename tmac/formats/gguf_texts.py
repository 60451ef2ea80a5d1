"""The files beside a Hugging Face model, made from the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_tokenizer import read_tokenizer, special_token_id

SPECIAL_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def special_token_ids(file: GgufFile, vocab_size: int) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id` of the configuration, None where the file has none.

    Raises:
        FormatError: one is not a row of the embedding.
    """
    return {target: special_token_id(file, name, vocab_size) for target, name in SPECIAL_IDS.items()}


def companion_texts(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Callable[[], str]]:
    """Name -> function that makes the text of a file. The tokenizer's raise FormatError where it is not supported."""
    texts: dict[str, Callable[[], str]] = {"generation_config.json": lambda: _generation_config(config)}
    if file.metadata.get("tokenizer.ggml.model", "none") not in ("none", "no_vocab"):
        tokenizer = _TokenizerTexts(file)
        texts["tokenizer.json"] = tokenizer.json
        texts["tokenizer_config.json"] = tokenizer.config
    if "tokenizer.chat_template" in file.metadata:
        texts["chat_template.jinja"] = lambda: file.get("tokenizer.chat_template", str)
    return texts


def _generation_config(config: Mapping[str, Any]) -> str:
    ids = {name: config[name] for name in SPECIAL_IDS if config.get(name) is not None}
    return json.dumps({"_from_model_config": True, **ids}, indent=2) + "\n"


class _TokenizerTexts:
    """The tokenizer's files. What they are made of is not kept: it takes ten times the memory of the text."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.special: dict[str, str] | None = None

    def json(self) -> str:
        """`tokenizer.json`."""
        tokenizer = read_tokenizer(self.file)
        self.special = tokenizer.special
        return json.dumps(tokenizer.json, ensure_ascii=False)

    def config(self) -> str:
        """`tokenizer_config.json`."""
        special = read_tokenizer(self.file).special if self.special is None else self.special
        content = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
