"""The texts: those of `tmac bench --draft`, and the prose at a temperature, for a greedy story repeats itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tmac.cli.bench_prompts import PROMPTS


class Text(NamedTuple):
    """Args:
    prompt: to go on with.
    options: of `Engine.generate`; none: greedily.
    """

    prompt: str
    options: Mapping[str, Any] = {}


SAMPLED = "sampled"
TEXTS = {name: Text(prompt) for name, prompt in PROMPTS.items()}
TEXTS[SAMPLED] = Text(PROMPTS["prose"], {"temperature": 0.8, "seed": 1})
STREAMED_TEXTS = ("prose", "code")
