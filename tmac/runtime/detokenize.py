"""Text from tokens one at a time: nothing is given out that a later token could still change."""

from __future__ import annotations

from collections.abc import Sequence, Set

from tmac.runtime.native import Tokenizer

REPLACEMENT = "\ufffd"
CONTEXT_TOKENS = 8
WINDOW_TOKENS = 24


class Detokenizer:
    """Decodes tokens as they come. The pieces together are what decoding all tokens at once gives.

    A piece ends before a character of which bytes are missing. Byte tokens (`<0xE4>`, of SentencePiece) wait for the
    first token that is none: if their bytes are no valid UTF-8 in the end, all of them are replaced. Decoders that
    treat the start of a text differently see it once: later windows begin with tokens that have been given out.

    Args:
        tokenizer: decodes lists of ids.
        context: the tokens before the first one, for a text that goes on from there: its first word keeps its space.
        bytes_: the tokenizer's `byte_tokens`, if they are known.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = (), bytes_: Set[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._bytes = byte_tokens(tokenizer) if bytes_ is None else bytes_
        self._ids = self._last_tokens(context)
        self._settled = len(self._ids)  # in front of it, every token has been given out in full
        self._given = len(_complete(self._decode(self._ids)))  # characters of the window's text
        self._in_bytes = bool(self._ids) and self._ids[-1] in self._bytes

    def add(self, token: int) -> str:
        """The text that is certain since the last call, perhaps none."""
        self._ids.append(token)
        if token in self._bytes:
            self._in_bytes = True
            return ""
        text = self._decode(self._ids)
        if self._in_bytes and text == self._decode(self._ids[:-1]):
            return ""  # a token without text, which does not end the bytes
        self._in_bytes = False
        complete = _complete(text)
        piece = complete[self._given :]
        self._given = max(self._given, len(complete))
        if complete == text and piece:
            self._settle()
        return piece

    def finish(self) -> str:
        """What has been held back, with U+FFFD for bytes that are no character."""
        text = self._decode(self._ids)
        piece = text[self._given :]
        self._given = max(self._given, len(text))
        return piece

    def _settle(self) -> None:
        """Everything has been given out: once the window is long, it goes on from the tokens that were new last."""
        if len(self._ids) - self._settled < WINDOW_TOKENS:
            return
        self._ids = self._last_tokens(self._ids)
        self._settled = len(self._ids)
        self._given = len(self._decode(self._ids))

    def _last_tokens(self, ids: Sequence[int]) -> list[int]:
        """Enough of the last tokens to have text, from the start of a character on as far as one can see."""
        count = CONTEXT_TOKENS
        while count < len(ids):
            first = len(ids) - count
            if ids[first] not in self._bytes and self._decode(ids[first:]):
                break
            count *= 2
        return [int(token) for token in ids[-count:]]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True) if ids else ""


def _complete(text: str) -> str:
    """Without the last character if it stands for bytes that may be the beginning of one."""
    return text[:-1] if text.endswith(REPLACEMENT) else text


def byte_tokens(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that stand for one byte in a vocabulary with byte fallback; none in others."""
    found = {byte: tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    letter = found[ord("A")]
    if letter is None or tokenizer.decode([letter]) != "A":  # else such a token is the text that it looks like
        return frozenset()
    return frozenset(token for token in found.values() if token is not None)
