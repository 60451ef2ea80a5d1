"""How the next token is chosen."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tmac.runtime.arguments import integer, number, shown
from tmac.runtime.native import Sampler, core

LARGEST_SEED = 2**64 - 1
LARGEST_ID = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen from the logits, in this order: repetition penalty, presence and frequency
    penalties, bias, the mask of a constraint, temperature, top-k, top-p, min-p. Equal logits: the lower id.

    Args:
        temperature: 0 takes the most likely token (greedy).
        top_k: of the most likely tokens this many; 0: all.
        top_p: of the most likely tokens as many as reach this probability together, in (0, 1].
        min_p: tokens of at least this share of the largest probability, in [0, 1].
        repetition_penalty: logits of tokens in the prompt or the text are divided by it (multiplied below 0).
        presence_penalty: subtracted from the logit of a token that the text has, the prompt not counted.
        frequency_penalty: subtracted once for each time that the text has it.
        logit_bias: token id -> what is added to its logit; -inf forbids the token.
        seed: the same seed gives the same text, alone or in a batch, on any number of threads; None: a random one.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = 0

    def __post_init__(self) -> None:
        checked = {
            "temperature": number("temperature", self.temperature, 0),
            "top_k": integer("top_k", self.top_k, 0, LARGEST_ID),
            "top_p": number("top_p", self.top_p, 0, 1, above=True),
            "min_p": number("min_p", self.min_p, 0, 1),
            "repetition_penalty": number("repetition_penalty", self.repetition_penalty, 0, above=True),
            "presence_penalty": number("presence_penalty", self.presence_penalty),
            "frequency_penalty": number("frequency_penalty", self.frequency_penalty),
            "logit_bias": _bias(self.logit_bias),
            "seed": None if self.seed is None else integer("seed", self.seed, 0, LARGEST_SEED),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    @property
    def uses_history(self) -> bool:
        """Whether tokens that have occurred matter."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    def make_sampler(self, vocab_size: int) -> Sampler:
        """A sampler at its first draw.

        Raises:
            ValueError: `logit_bias` has an id that the vocabulary has not.
        """
        for token in self.logit_bias:
            integer("logit_bias", token, 0, vocab_size - 1)
        sampler: Sampler = core.Sampler(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=secrets.randbits(64) if self.seed is None else self.seed,
            logit_bias=sorted(self.logit_bias.items()),
        )
        return sampler


def _bias(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias: expected a dictionary of token ids, found {shown(value)}")
    found = {}
    for token, bias in value.items():
        added = bias if bias == -math.inf else number("logit_bias", bias)
        found[integer("logit_bias", token, 0, LARGEST_ID)] = float(added)
    return found
