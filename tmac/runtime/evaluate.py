"""Passes over whole texts: logits for evaluation, and prompts that are saved and restored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tmac.formats.errors import format_error
from tmac.runtime.generate import TokenLogprob
from tmac.runtime.native import Floats, Ids, core, is_cache_full
from tmac.runtime.passes import Passes
from tmac.runtime.prefixes import Prefix
from tmac.runtime.prompt_cache import Bytes, file_version, read_prompt, write_prompt
from tmac.runtime.scheduler import Scheduler

PROBE_TOKENS = 16

Result = TypeVar("Result")


class Evaluator:
    """Uses a decoder between the passes of a scheduler.

    Args:
        passes: whose decoder it is.
        scheduler: gives the turns.
        model_config: what the model was built with.
        cache_type: of the decoder.
        most_rows: whose logits are asked for in a pass; None: as many as a pass has.
    """

    def __init__(
        self,
        passes: Passes,
        scheduler: Scheduler,
        model_config: Mapping[str, Any],
        cache_type: str,
        most_rows: int | None = None,
    ) -> None:
        self._passes, self._scheduler = passes, scheduler
        self._about = json.dumps([dict(model_config), cache_type], sort_keys=True, default=str)
        self._vocab_size = int(model_config["vocab_size"])
        self._fingerprint: str | None = None
        self._most_rows = most_rows or passes.chunk_size

    def logits(self, ids: list[int], take: Callable[[int, Floats], None]) -> None:
        """Calls `take(first row, logits [rows, vocab])` for a text, a chunk at a time."""
        with self._scheduler.exclusive():
            self._passes.decoder.release(self._evaluate(ids, take))

    def rows(self, ids: list[int]) -> Floats:
        """Logits of every token of a text: f32 `[tokens, vocab]`."""
        found = np.empty((len(ids), self._vocab_size), np.float32)

        def take(begin: int, rows: Floats) -> None:
            found[begin : begin + len(rows)] = rows

        self.logits(ids, take)
        return found

    def log_probabilities(self, ids: list[int]) -> Floats:
        """Log-probability of every token of a text but the first: f32 `[tokens - 1]`."""
        tokens, found = np.array(ids, np.int32), np.empty(len(ids) - 1, np.float32)

        def take(begin: int, rows: Floats) -> None:
            following = tokens[begin + 1 : begin + 1 + len(rows)]
            if len(following):
                found[begin : begin + len(following)] = core.log_probabilities(rows[: len(following)], following)

        self.logits(ids, take)
        return found

    def token_logprobs(self, ids: list[int], count: int, cancelled: Callable[[], bool]) -> list[TokenLogprob]:
        """The same, with the `count` most likely tokens at each place. Raises RuntimeError once `cancelled`."""
        found: list[TokenLogprob] = []

        def take(begin: int, rows: Floats) -> None:
            following = np.array(ids[begin + 1 : begin + 1 + len(rows)], np.int32)
            if cancelled():
                raise RuntimeError("[token_logprobs] cancelled")
            for row, token in zip(rows, following, strict=False):
                value = float(core.log_probabilities(row[None], token[None])[0])
                best = core.top_log_probabilities(row, count) if count else ()
                pairs = zip(*(part.tolist() for part in best), strict=True)
                found.append(TokenLogprob(int(token), value, tuple(pairs)))

        self.logits(ids, take)
        return found

    def save(self, path: str | Path, ids: list[int]) -> None:
        """Evaluates a prompt, keeps it, and writes it to a file."""
        fingerprint, tokens = self.fingerprint(), np.array(ids, np.int32)
        with self._scheduler.exclusive():
            seq = self._evaluate(ids, None)
            state = self._passes.decoder.save(seq)
            self._passes.prefixes.keep(Prefix(seq, tokens, self._passes.rope_key(len(ids))))
        write_prompt(path, tokens, state, fingerprint)

    def load(self, path: str | Path) -> None:
        """Puts a prompt from a file among those that are kept, unless it is there.

        Raises:
            FormatError: the file is damaged, or of another model or type of cache.
            OSError: it cannot be read.
            RuntimeError: the cache has no room for it.
        """
        if not isinstance(path, (str, Path)):
            raise TypeError(f"prompt_cache: expected a path, found {type(path).__name__}")
        version, prefixes = file_version(path), self._passes.prefixes
        with self._scheduler.exclusive():
            known = prefixes.find_source(version)
            if known is not None:
                prefixes.use(known)
                return
        tokens, state = read_prompt(path, self.fingerprint(), self._vocab_size)
        with self._scheduler.exclusive():
            seq = self._restore(path, tokens, state)
            prefixes.keep(Prefix(seq, tokens, self._passes.rope_key(len(tokens)), version))

    def fingerprint(self) -> str:
        """Of the model and its cache: of its numbers, and of the bits of the logits that it gives for a few tokens."""
        if self._fingerprint is None:
            ids = [(7919 * place + 13) % self._vocab_size for place in range(PROBE_TOKENS)]
            digest = hashlib.blake2b(self._about.encode(), digest_size=16)
            self.logits(ids, lambda _, rows: digest.update(np.ascontiguousarray(rows).data))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _evaluate(self, ids: list[int], take: Callable[[int, Floats], None] | None) -> int:
        """A new sequence with these tokens, evaluated as a prompt."""
        passes = self._passes
        seq = passes.decoder.create()
        try:
            step = passes.chunk_size if take is None else min(passes.chunk_size, self._most_rows)
            for begin in range(0, len(ids), step):
                tokens = np.array(ids[begin : begin + step], np.int32)
                wanted = np.arange(len(tokens) if take is not None else 0, dtype=np.int32)
                rows = self._with_room(lambda: passes.forward([seq], [tokens], "prompt", [wanted], [len(ids)]))  # noqa: B023
                if take is not None:
                    take(begin, rows)
        except BaseException:
            passes.decoder.release(seq)
            raise
        return seq

    def _restore(self, path: str | Path, tokens: Ids, state: Bytes) -> int:
        decoder = self._passes.decoder
        try:
            seq = self._with_room(lambda: decoder.restore(state))
        except ValueError as error:
            raise format_error(path, f"the state cannot be restored: {error}", "state") from error
        if decoder.length(seq) != len(tokens):
            found = decoder.length(seq)
            decoder.release(seq)
            raise format_error(path, f"expected a state of {len(tokens)} tokens, found {found}", "state")
        return seq

    def _with_room(self, call: Callable[[], Result]) -> Result:
        """Calls again while the cache is full and there are kept prompts to release."""
        while True:
            try:
                return call()
            except RuntimeError as error:
                if not is_cache_full(error) or not self._passes.make_room():
                    raise


def rope_key(model_config: Mapping[str, Any]) -> Callable[[int], Hashable] | None:
    """What the positions of a prompt's rows depend on beside their numbers, from its length; None: nothing.

    Dynamic NTK stretches the positions of a prompt that is longer than the original context by its length; LongRoPE has
    one set of frequencies for short prompts and one for long ones.
    """
    dynamic = [entry["dynamic"] for entry in model_config.get("rope") or () if entry.get("dynamic")]
    if not dynamic:
        return None

    def key(length: int) -> Hashable:
        return tuple(_rope_state(entry, length) for entry in dynamic)

    return key


def _rope_state(dynamic: Mapping[str, Any], length: int) -> int:
    if length <= dynamic["original"]:
        return 0
    return length if dynamic["kind"] == "ntk" else 1
