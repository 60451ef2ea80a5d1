"""How much faster an engine's draft makes it: plain against speculative decoding, in turn, with the same tokens."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tmac.runtime.generate import Generation
from tmac.runtime.speculation.stats import SpeculationStats


class Generator(Protocol):
    """What is measured of `tmac.Engine`."""

    def generate(self, prompt: Any, *, stream: bool = ..., **options: Any) -> Any: ...
    def drop_prompts(self) -> None: ...


@dataclass
class Comparison:
    """The runs over one prompt.

    Args:
        name: of the prompt.
        token_ids: that follow it, in every run.
        prompt_tokens: in the prompt.
        plain: tokens per second of each run without the draft, after the first token.
        drafted: the same of each run with it; none where there is no draft.
        stats: of the runs with the draft.
    """

    name: str
    token_ids: list[int]
    prompt_tokens: int
    plain: list[float] = field(default_factory=list)
    drafted: list[float] = field(default_factory=list)
    stats: list[SpeculationStats] = field(default_factory=list)

    @property
    def factor(self) -> float | None:
        """The median with the draft over that without; None where there is no draft."""
        return statistics.median(self.drafted) / statistics.median(self.plain) if self.drafted else None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.token_ids),
            "token_ids": self.token_ids,
            "plain_ts": statistics.median(self.plain),
            "plain_samples_ts": self.plain,
            "draft_ts": statistics.median(self.drafted) if self.drafted else None,
            "draft_samples_ts": self.drafted,
            "factor": self.factor,
            "speculation": [each.to_dict() for each in self.stats],
        }


def compare(
    engine: Generator,
    prompts: Mapping[str, Any],
    *,
    max_new_tokens: int,
    repetitions: int = 5,
    draft: bool = True,
    **options: Any,
) -> list[Comparison]:
    """Generates every text in turn without and with the draft, so that a busy minute slows both.

    No prompt is kept from one run to the next: the time after the first token holds what the draft takes to read the
    prompt. The first round is not timed.

    Args:
        engine: with its draft, which nobody else uses.
        prompts: by name, as `Engine.generate` takes one.
        max_new_tokens: of each text; an end-of-text token does not end it.
        repetitions: timed runs of each kind.
        draft: whether the engine has one; without, only plain decoding is timed.
        options: others of `Engine.generate`.

    Raises:
        ValueError: a text has fewer tokens, for the context is full.
        RuntimeError: a text with the draft is another one than that without.
    """
    options = {**options, "max_new_tokens": max_new_tokens, "ignore_eos": True}
    found: dict[str, Comparison] = {}
    for number in range(repetitions + 1):
        for name, prompt in prompts.items():
            for speculative in _order(number, draft):
                engine.drop_prompts()
                result = engine.generate(prompt, speculative=speculative, **options)
                known = found.setdefault(name, Comparison(name, result.token_ids, result.prompt_tokens))
                _check(known, result, max_new_tokens)
                if number:
                    _add(known, result, speculative=speculative)
    return list(found.values())


def _order(number: int, draft: bool) -> Iterator[bool]:
    """Whether each run of a round is speculative; who is first takes turns."""
    yield from ((False, True) if number % 2 == 0 else (True, False)) if draft else (False,)


def _check(known: Comparison, result: Generation, wanted: int) -> None:
    ids = result.token_ids
    if len(ids) < wanted:
        raise ValueError(
            f"{known.name}: expected {wanted} tokens after {known.prompt_tokens}, found room for {len(ids)}"
        )
    if ids != known.token_ids:
        place = next(place for place, pair in enumerate(zip(ids, known.token_ids, strict=True)) if pair[0] != pair[1])
        raise RuntimeError(f"[compare] {known.name}: token {place} is {ids[place]}, expected {known.token_ids[place]}")


def _add(known: Comparison, result: Generation, *, speculative: bool) -> None:
    (known.drafted if speculative else known.plain).append(result.timings.generated_tokens_per_second)
    if speculative and result.speculation is not None:
        known.stats.append(result.speculation)
