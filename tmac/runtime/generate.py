"""What a generation is asked for and what comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from tmac.runtime.arguments import flag, integer, shown, strings
from tmac.runtime.sampling import SamplingParams
from tmac.runtime.speculation.stats import SpeculationStats

MAX_LOGPROBS = 1024
SAMPLING = tuple(item.name for item in fields(SamplingParams))


@dataclass(frozen=True)
class Options:
    """How a text goes on and when it ends.

    Args:
        sampling: how tokens are chosen.
        max_new_tokens: the text ends with this many; None: when the context is full.
        stop: strings that end the text; they are not part of it.
        logprobs: log-probabilities of the tokens, and of this many of the most likely ones at each place; None: none.
        json_schema: the text is JSON that fits this schema (a dictionary, or its JSON).
        grammar: the text is derived from this grammar (Lark, GBNF, or llguidance's own JSON).
        regex: the text matches this regular expression as a whole.
        add_special_tokens: what the tokenizer puts around a prompt that is a text.
        ignore_eos: go on after an end-of-text token.
        context_shift: when the context is full, drop the older half and go on.
        n_keep: with `context_shift`: how many of the first tokens always stay.
        speculative: use the engine's draft, if it has one; the text is the same without it.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int | None = 128
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    json_schema: Mapping[str, Any] | str | bool | None = None
    grammar: str | None = None
    regex: str | None = None
    add_special_tokens: bool = True
    ignore_eos: bool = False
    context_shift: bool = False
    n_keep: int = 4
    speculative: bool = True

    def __post_init__(self) -> None:
        most, count = self.max_new_tokens, self.logprobs
        checked = {
            "max_new_tokens": None if most is None else integer("max_new_tokens", most, 1),
            "stop": strings("stop", self.stop),
            "logprobs": None if count is None else integer("logprobs", count, 0, MAX_LOGPROBS),
            "n_keep": integer("n_keep", self.n_keep, 0),
        }
        for name in ("add_special_tokens", "ignore_eos", "context_shift", "speculative"):
            flag(name, getattr(self, name))
        for name in ("grammar", "regex"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name}: expected a string, found {shown(value)}")
        constraints = [name for name in ("json_schema", "grammar", "regex") if getattr(self, name) is not None]
        if len(constraints) > 1:
            raise ValueError(f"{constraints[0]}: expected one constraint, found {' and '.join(constraints)}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of(cls, **options: Any) -> Options:
        """From all arguments by name, those of `SamplingParams` among them. Raises TypeError for an unknown one."""
        known = {item.name for item in fields(cls)} - {"sampling"} | set(SAMPLING)
        unknown = sorted(options.keys() - known)
        if unknown:
            raise TypeError(f"unknown argument {unknown[0]!r}; known are {', '.join(sorted(known))}")
        sampling = SamplingParams(**{name: options.pop(name) for name in SAMPLING if name in options})
        return cls(sampling, **options)


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a chosen token, from the model's logits before anything changes them.

    Args:
        token_id: the token.
        logprob: the natural logarithm of its probability.
        top: the most likely tokens at its place, (token id, log-probability), the most likely first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Timings:
    """Where the time of a generation went, in seconds.

    Args:
        queued: until its first pass.
        prompt: from there to the first token.
        generation: from the first token to the last one.
        prompt_tokens: in the prompt.
        reused_tokens: of these, evaluated before by others.
        generated_tokens: sampled.
    """

    queued: float = 0.0
    prompt: float = 0.0
    generation: float = 0.0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0

    @property
    def prompt_tokens_per_second(self) -> float:
        """Of the prompt's tokens that were evaluated; 0 if there was no time."""
        return (self.prompt_tokens - self.reused_tokens) / self.prompt if self.prompt else 0.0

    @property
    def generated_tokens_per_second(self) -> float:
        """Of the tokens after the first one, which comes with the prompt; 0 if there was no time."""
        return (self.generated_tokens - 1) / self.generation if self.generation else 0.0


@dataclass(frozen=True)
class Chunk:
    """A piece of a text.

    Args:
        text: the piece; complete characters, perhaps none in the last chunk.
        token_ids: the tokens since the chunk before.
        logprobs: one for each token, if they were asked for.
        finish_reason: in the last chunk "stop" (an end-of-text token, a stop string, the end of a constraint),
            "length" (`max_new_tokens`, or the context is full) or "cancelled"; else None.
        index: which prompt of the batch.
        timings: in the last chunk.
        stop: in the last chunk the stop string that was found.
        speculation: in the last chunk what the engine's draft did, if it was used.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: str | None = None
    index: int = 0
    timings: Timings | None = None
    stop: str | None = None
    speculation: SpeculationStats | None = None


@dataclass(frozen=True)
class Generation:
    """A finished text.

    Args:
        text: what follows the prompt, without end-of-text tokens and stop strings.
        token_ids: every token that was sampled, also those of the end.
        finish_reason: "stop", "length" or "cancelled", see `Chunk`.
        prompt_tokens: how many the prompt has.
        timings: where the time went.
        logprobs: one for each token, if they were asked for.
        stop: the stop string that was found.
        speculation: what the engine's draft did, if it was used.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    prompt_tokens: int
    timings: Timings
    logprobs: list[TokenLogprob] | None = None
    stop: str | None = None
    speculation: SpeculationStats | None = None

    @classmethod
    def of(cls, chunks: Sequence[Chunk], prompt_tokens: int) -> Generation:
        """All chunks of a text together."""
        last = chunks[-1]
        assert last.finish_reason is not None
        assert last.timings is not None
        logprobs = None
        if last.logprobs is not None:
            logprobs = [item for chunk in chunks for item in chunk.logprobs or ()]
        return cls(
            "".join(chunk.text for chunk in chunks),
            [token for chunk in chunks for token in chunk.token_ids],
            last.finish_reason,
            prompt_tokens,
            last.timings,
            logprobs,
            last.stop,
            last.speculation,
        )


def is_one_prompt(prompt: Any) -> bool:
    """Whether it is a text or a list of ids and not a list of such.

    Raises:
        TypeError: it is neither.
        ValueError: it is empty.
    """
    if isinstance(prompt, str):
        return True
    if isinstance(prompt, np.ndarray):
        if prompt.ndim != 1:
            raise ValueError(f"prompt: expected ids in one dimension, found the shape {list(prompt.shape)}")
        prompt = prompt.tolist()
    if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence):
        raise TypeError(f"prompt: expected a text, a list of token ids or a list of these, found {shown(prompt)}")
    if not prompt:
        raise ValueError("prompt: expected at least one token, found none")
    return not isinstance(prompt[0], (str, list, tuple, np.ndarray))


def checked_ids(name: str, ids: Any, vocab_size: int) -> list[int]:
    """Token ids as a list of integers.

    Raises:
        TypeError: something else.
        ValueError: there are none, or one is not in the vocabulary.
    """
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise TypeError(f"{name}: expected integers in one dimension, found {ids.dtype} {list(ids.shape)}")
        ids = ids.tolist()
    if isinstance(ids, (str, bytes, Mapping)) or not isinstance(ids, Sequence):
        raise TypeError(f"{name}: expected a list of token ids, found {shown(ids)}")
    if not ids:
        raise ValueError(f"{name}: expected at least one token, found none")
    return [integer(f"{name}[{place}]", token, 0, vocab_size - 1) for place, token in enumerate(ids)]
