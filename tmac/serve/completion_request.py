"""The body of /v1/completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tmac.serve.errors import invalid
from tmac.serve.fields import Fields, checked_integer, checked_string, shown
from tmac.serve.generation_fields import Generation, read_generation, refuse_candidates
from tmac.serve.settings import MOST_LOGPROBS, Settings

DEFAULT_TOKENS = 16
REFUSED = {"suffix": "text is only put after the prompt, not in front of a suffix"}


@dataclass(frozen=True)
class CompletionRequest:
    """What it asks for.

    Args:
        model: whose texts.
        prompts: texts or token ids.
        echo: the prompt is part of the text.
        logprobs: so many most likely tokens at each place; None: no log-probabilities.
        generation: the rest.
    """

    model: str
    prompts: list[str | list[int]]
    echo: bool
    logprobs: int | None
    generation: Generation


def read_completion(body: Any, settings: Settings, vocab_size: int) -> CompletionRequest:
    """Reads the parsed JSON.

    Raises:
        ApiError: a field is missing, wrong or unknown.
    """
    fields = Fields(body)
    model = fields.needed_string("model")
    prompts = _prompts(fields.take("prompt"), vocab_size)
    echo = fields.flag("echo")
    logprobs = fields.integer("logprobs", 0, MOST_LOGPROBS)
    default = DEFAULT_TOKENS if settings.max_tokens is None else min(DEFAULT_TOKENS, settings.max_tokens)
    max_tokens = fields.integer("max_tokens", 0 if echo else 1, None, default)
    fields.refuse(REFUSED, {"suffix": ""})
    generation = read_generation(fields, settings, vocab_size, max_tokens)
    refuse_candidates(fields, generation.n)
    fields.finish()
    if logprobs is not None:
        generation.options["logprobs"] = logprobs
    return CompletionRequest(model, prompts, echo, logprobs, generation)


def _prompts(value: Any, vocab_size: int) -> list[str | list[int]]:
    """A text, texts, token ids, or lists of them."""
    if value is None:
        raise invalid("prompt", "expected a text or token ids, found nothing", "missing_required_parameter")
    if isinstance(value, str):
        return [checked_string("prompt", value)]
    if not isinstance(value, list):
        raise invalid("prompt", f"expected a text, token ids or a list of them, found {shown(value)}", "invalid_type")
    if not value:
        raise invalid("prompt", "expected at least one prompt, found none")
    if isinstance(value[0], str):
        return [checked_string("prompt", item) for item in value]
    if isinstance(value[0], list):
        return [_ids(item, vocab_size) for item in value]
    return [_ids(value, vocab_size)]


def _ids(value: Any, vocab_size: int) -> list[int]:
    if not isinstance(value, list):
        raise invalid("prompt", f"expected a list of token ids, found {shown(value)}", "invalid_type")
    return [checked_integer("prompt", token, 0, vocab_size - 1) for token in value]
