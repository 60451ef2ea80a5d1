"""One text on its way: which tokens it has, what the next logits make of it, when it ends. Knows no decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from tmac.runtime.detokenize import Detokenizer
from tmac.runtime.generate import Chunk, Options, Timings, TokenLogprob
from tmac.runtime.native import Floats, Tokenizer, Words, core
from tmac.runtime.speculation.stats import SpeculationStats
from tmac.runtime.stop import StopStrings

NO_HISTORY = np.empty(0, np.int32)


class Constraint(Protocol):
    """What the text must be."""

    def mask(self) -> Words:
        """The tokens that may come next, bit i of word i // 32."""

    def accept(self, token: int) -> None:
        """The token that came."""

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing may follow."""


@dataclass(frozen=True)
class Model:
    """What a text's bookkeeping needs to know of its model.

    Args:
        vocab_size: logits of a row.
        context_length: positions of a sequence.
        eos_ids: tokens that end a text.
        tokenizer: for the text.
        byte_ids: its byte tokens, `detokenize.byte_tokens`.
    """

    vocab_size: int
    context_length: int
    eos_ids: Set[int]
    tokenizer: Tokenizer
    byte_ids: Set[int] = field(default_factory=frozenset)


class Task:
    """A prompt and the tokens after it.

    The first `prompt_rows` tokens are evaluated as a prompt, those after them as generated ones: the bits of a row
    depend on that. After a context shift, what is left is a new prompt.

    Args:
        model: whose text it is.
        prompt: its token ids, at least one.
        options: how it goes on.
        constraint: what it must be, or None.
        continues: the text goes on from the prompt's (the first word keeps its space), and is not a new one.
        index: of the prompt in its batch.
        deliver: takes the chunks.
        fail: takes what keeps the text from ending.
        abandoned: whether nobody waits for chunks any more.
    """

    def __init__(
        self,
        model: Model,
        prompt: list[int],
        options: Options,
        *,
        constraint: Constraint | None = None,
        continues: bool = True,
        index: int = 0,
        deliver: Callable[[Chunk], None],
        fail: Callable[[BaseException], None],
        abandoned: Callable[[], bool],
    ) -> None:
        self.model, self.options, self.constraint = model, options, constraint
        self.fail, self.abandoned = fail, abandoned
        self.ticket = -1  # the order of arrival
        self.seq: int | None = None  # in the decoder, while it has one
        self.tokens = list(prompt)
        self.head = np.array(prompt, np.int32)  # the tokens that are evaluated as a prompt
        self.finish_reason: str | None = None
        self.speculation: SpeculationStats | None = None
        self.shifted = False  # the tokens are no longer those of the sequence
        self._deliver = deliver
        self._sampler = options.sampling.make_sampler(model.vocab_size)
        self._history = np.array(prompt, np.int32) if options.sampling.uses_history else NO_HISTORY
        self._seen = self._prompt_size = len(self._history)
        self._detokenizer = Detokenizer(model.tokenizer, prompt if continues else (), model.byte_ids)
        self._stops = StopStrings(options.stop)
        self._token_ids: list[int] = []  # not yet delivered
        self._logprobs: list[TokenLogprob] | None = None if options.logprobs is None else []
        self._index = index
        self._prompt_tokens, self._reused, self._generated = len(prompt), 0, 0
        self._arrived = self._last = time.perf_counter()
        self._started: float | None = None
        self._first: float | None = None

    @property
    def prompt_rows(self) -> int:
        """How many of the first tokens are evaluated as a prompt."""
        return len(self.head)

    @property
    def generated(self) -> int:
        """Tokens after the prompt."""
        return self._generated

    @property
    def room(self) -> int:
        """Tokens that may still come before the text ends or the context is full."""
        left = self.model.context_length - len(self.tokens)
        most = self.options.max_new_tokens
        return left if most is None else min(left, most - self._generated)

    def start(self, reused: int) -> None:
        """Its first pass is about to run; `reused` of its tokens have been evaluated by others."""
        if self._started is None:
            self._started = time.perf_counter()
            self._reused = reused

    def accept(self, logits: Floats) -> None:
        """The next token from the logits of the last one, f32 `[vocab]`. Delivers what is certain.

        Raises:
            ValueError: the logits are no numbers, or the constraint allows no token.
        """
        mask = None if self.constraint is None else self.constraint.mask()
        token = int(self._sampler.sample(logits, self._history[: self._seen], mask, self._prompt_size))
        if self._logprobs is not None:
            self._logprobs.append(self._logprob(logits, token))
        if self.constraint is not None:
            self.constraint.accept(token)
        self._append(token)
        ended = token in self.model.eos_ids and not self.options.ignore_eos
        text = "" if ended else self._stops.feed(self._detokenizer.add(token))
        if self._stops.found is not None or ended or (self.constraint is not None and self.constraint.finished):
            self.finish("stop", text)
        elif self._generated == self.options.max_new_tokens or not self._has_room():
            self.finish("length", text)
        elif text:
            self._send(text)

    def finish(self, reason: str, text: str = "") -> None:
        """Delivers what was held back, unless a stop string was found, and ends. Twice is once."""
        if self.finish_reason is not None:
            return
        self.finish_reason = reason
        if self._stops.found is None:
            text += self._stops.feed(self._detokenizer.finish())
        if self._stops.found is not None:
            self.finish_reason = "stop" if reason != "cancelled" else reason
        else:
            text += self._stops.finish()
        self._send(text)

    def _send(self, text: str) -> None:
        logprobs = None if self._logprobs is None else tuple(self._logprobs)
        ids, last = tuple(self._token_ids), self.finish_reason is not None
        self._token_ids = []
        self._logprobs = None if self._logprobs is None else []
        timings, stop = (self._timings(), self._stops.found) if last else (None, None)
        speculation = self.speculation if last else None
        self._deliver(Chunk(text, ids, logprobs, self.finish_reason, self._index, timings, stop, speculation))

    def _timings(self) -> Timings:
        now = time.perf_counter()
        started, first = self._started or now, self._first or now
        return Timings(
            queued=started - self._arrived,
            prompt=first - started,
            generation=max(self._last - first, 0.0),
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused,
            generated_tokens=self._generated,
        )

    def _append(self, token: int) -> None:
        self._last = time.perf_counter()
        self._first = self._first or self._last
        self._generated += 1
        self.tokens.append(token)
        self._token_ids.append(token)
        if self.options.sampling.uses_history:
            if self._seen == len(self._history):
                self._history = np.concatenate([self._history, np.empty(max(64, self._seen), np.int32)])
            self._history[self._seen] = token
            self._seen += 1

    def _logprob(self, logits: Floats, token: int) -> TokenLogprob:
        value = float(core.log_probabilities(logits[None], np.array([token], np.int32))[0])
        count = min(self.options.logprobs or 0, len(logits))
        if not count:
            return TokenLogprob(token, value)
        ids, values = core.top_log_probabilities(logits, count)
        return TokenLogprob(token, value, tuple(zip(ids.tolist(), values.tolist(), strict=True)))

    def _has_room(self) -> bool:
        """Whether another token fits, if need be without the older half of what follows the first `n_keep`."""
        if len(self.tokens) < self.model.context_length:
            return True
        if not self.options.context_shift:
            return False
        keep = min(self.options.n_keep, self.model.context_length // 2)
        left = max((len(self.tokens) - keep) // 2, 1)
        self.tokens = self.tokens[:keep] + self.tokens[len(self.tokens) - left :]
        self.head = np.array(self.tokens, np.int32)
        self.shifted = True
        return True
