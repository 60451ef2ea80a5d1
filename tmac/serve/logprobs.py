"""Log-probabilities as the two endpoints write them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tmac.serve.token_texts import TokenTexts

LOWEST = -9999.0  # what OpenAI writes for minus infinity, which JSON cannot


def shown_tokens(chunk: Any, texts: TokenTexts) -> list[Any]:
    """The log-probabilities of a chunk's tokens, but not of the one that ends a text and is not shown."""
    items = list(chunk.logprobs or ())
    if items and chunk.finish_reason == "stop" and texts.is_special(items[-1].token_id):
        items.pop()
    return items


def chat_logprobs(items: Iterable[Any], texts: TokenTexts) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`. `items`: `TokenLogprob`s."""
    return [
        {
            **_token(item.token_id, item.logprob, texts),
            "top_logprobs": [_token(token, value, texts) for token, value in item.top],
        }
        for item in items
    ]


def _token(token: int, value: float, texts: TokenTexts) -> dict[str, Any]:
    known = texts.bytes_of(token)
    return {"token": known.decode("utf-8", "replace"), "logprob": max(value, LOWEST), "bytes": list(known)}


class CompletionLogprobs:
    """`choices[].logprobs` of completions, in parts: offsets count the characters of the whole text.

    Args:
        texts: of tokens.
        top: so many most likely tokens at each place.
    """

    def __init__(self, texts: TokenTexts, top: int) -> None:
        self._texts, self._top = texts, top
        self._offset, self._pending = 0, b""

    def write(self, items: Sequence[Any]) -> dict[str, Any]:
        """Of the next tokens, `TokenLogprob`s; a logprob of None is that of the first token of a prompt."""
        offsets = []
        for item in items:
            offsets.append(self._offset)
            if not self._texts.is_special(item.token_id):
                self._pending += self._texts.bytes_of(item.token_id)
            whole, self._pending = _whole_characters(self._pending)
            self._offset += len(whole)
        return {
            "tokens": [self._texts.named(item.token_id) for item in items],
            "token_logprobs": [None if item.logprob is None else max(item.logprob, LOWEST) for item in items],
            "top_logprobs": [self._row(item) for item in items] if self._top else None,
            "text_offset": offsets,
        }

    def _row(self, item: Any) -> dict[str, float] | None:
        """The most likely tokens at a place and the token itself; of two with the same text the more likely one."""
        if item.logprob is None:
            return None
        row: dict[str, float] = {}
        for token, value in (*item.top, (item.token_id, item.logprob)):
            name = self._texts.named(token)
            row[name] = max(value, LOWEST, row.get(name, LOWEST))
        return row


def _whole_characters(data: bytes) -> tuple[str, bytes]:
    """The text of the bytes, and those at the end that are the beginning of a character."""
    for cut in range(min(3, len(data)) + 1):
        head = data[: len(data) - cut]
        try:
            return head.decode("utf-8"), data[len(data) - cut :]
        except UnicodeDecodeError:
            continue
    return data.decode("utf-8", "replace"), b""
