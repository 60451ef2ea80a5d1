"""What single tokens stand for: log-probabilities name tokens by their text, which may be part of a character."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any


class TokenTexts:
    """Texts and bytes of tokens. The vocabulary is taken apart when the first one is asked for.

    Args:
        tokenizer: with `decode` and `to_json`, as of `tmac.runtime`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._table: dict[int, bytes] | None = None
        self._special: dict[int, bool] = {}
        self._lock = threading.Lock()

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token adds to a text."""
        with self._lock:
            if self._table is None:
                self._table = _token_bytes(json.loads(self._tokenizer.to_json()))
            known = self._table.get(token)
            if known is None:
                known = self._table[token] = self._decode([token]).encode("utf-8", "replace")
        return known

    def text_of(self, token: int) -> str:
        """As text, with U+FFFD for what is no character by itself."""
        return self.bytes_of(token).decode("utf-8", "replace")

    def named(self, token: int) -> str:
        """As text, or as OpenAI writes a token that is no text by itself: `bytes:\\xe4\\xbd`."""
        known = self.bytes_of(token)
        try:
            return known.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in known)

    def is_special(self, token: int) -> bool:
        """Whether a text never shows it."""
        if token not in self._special:
            hidden = not self._tokenizer.decode([token], skip_special_tokens=True)
            self._special[token] = hidden and bool(self._decode([token]))
        return self._special[token]

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False)
        return text


def _token_bytes(content: dict[str, Any]) -> dict[int, bytes]:
    """Of the tokens of byte-level and SentencePiece vocabularies; those of others are decoded one by one."""
    parts = _parts(content.get("decoder")) | _parts(content.get("pre_tokenizer"))
    vocab = content["model"].get("vocab") or {}
    items = list(vocab.items()) if isinstance(vocab, dict) else [(row[0], index) for index, row in enumerate(vocab)]
    found: dict[int, bytes] = {}
    if "ByteLevel" in parts:
        table = _byte_level()
        for text, token in items:
            if all(char in table for char in text):
                found[token] = bytes(table[char] for char in text)
    elif parts & {"ByteFallback", "Metaspace"}:
        for text, token in items:
            byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
            found[token] = bytes.fromhex(text[3:5]) if byte else text.replace("\u2581", " ").encode()
    for added in content.get("added_tokens") or ():
        found[added["id"]] = added["content"].encode()
    return found


def _parts(part: Any) -> set[str]:
    """The types of a decoder's or pre-tokenizer's parts."""
    if not isinstance(part, dict):
        return set()
    inside = [*(part.get("decoders") or ()), *(part.get("pretokenizers") or ())]
    return {str(part.get("type"))}.union(*map(_parts, inside))


def _byte_level() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for 256 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return table
