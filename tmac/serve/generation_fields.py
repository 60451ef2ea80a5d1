"""The fields that completions and chat completions have in common."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from tmac.serve.errors import invalid, unsupported
from tmac.serve.fields import Fields, checked_integer, checked_number, checked_string, shown
from tmac.serve.settings import MOST_CHOICES, Settings

MOST_STOPS = 16
SEEDS = 2**64
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True)
class Generation:
    """What a request asks for, but for its prompt.

    Args:
        n: texts for each prompt.
        stream: as events.
        include_usage: with the number of tokens in the last event.
        max_tokens: of each text; None: as many as fit.
        seed: of the first text.
        options: of `Engine.submit`, without the number of tokens and the seed.
    """

    n: int
    stream: bool
    include_usage: bool
    max_tokens: int | None
    seed: int
    options: dict[str, Any]

    def options_of(self, choice: int, max_tokens: int) -> dict[str, Any]:
        """Of `Engine.submit` for the n-th text of a prompt: each one has a seed of its own."""
        return {**self.options, "max_new_tokens": max_tokens, "seed": (self.seed + choice) % SEEDS}


def read_generation(fields: Fields, settings: Settings, vocab_size: int, max_tokens: int | None) -> Generation:
    """Reads them. `max_tokens` has been read: its name depends on the endpoint.

    Raises:
        ApiError: a field is wrong; the message names it.
    """
    fields.ignore(IGNORED)
    if max_tokens is not None and settings.max_tokens is not None and max_tokens > settings.max_tokens:
        raise invalid("max_tokens", f"this server gives at most {settings.max_tokens}, found {max_tokens}")
    stream = fields.flag("stream")
    seed = fields.integer("seed", -(2**63), SEEDS - 1)
    return Generation(
        n=fields.integer("n", 1, MOST_CHOICES, 1) or 1,
        stream=stream,
        include_usage=_include_usage(fields, stream),
        max_tokens=max_tokens,
        seed=secrets.randbits(64) if seed is None else seed % SEEDS,
        options={
            "temperature": fields.number("temperature", 0, 2, 1.0),
            "top_p": fields.number("top_p", 0, 1, 1.0, above=True),
            "top_k": max(0, fields.integer("top_k", -1, vocab_size, 0) or 0),  # -1: all, as vLLM writes it
            "min_p": fields.number("min_p", 0, 1, 0.0),
            "repetition_penalty": fields.number("repetition_penalty", 0, 10, 1.0, above=True),
            "presence_penalty": fields.number("presence_penalty", -2, 2, 0.0),
            "frequency_penalty": fields.number("frequency_penalty", -2, 2, 0.0),
            "logit_bias": _logit_bias(fields.take("logit_bias"), vocab_size),
            "stop": _stop(fields.take("stop")),
            "ignore_eos": fields.flag("ignore_eos"),
            "speculative": fields.flag("speculative", True),
            **_constraint(fields),
        },
    )


def _include_usage(fields: Fields, stream: bool) -> bool:
    value = fields.take("stream_options")
    if value is None:
        return False
    if not stream:
        raise invalid("stream_options", "only with stream: true")
    options = Fields(value, "stream_options")
    options.ignore(("include_obfuscation",))
    include = options.flag("include_usage")
    options.finish()
    return include


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        wanted = f"a string or a list of at most {MOST_STOPS} strings"
        raise invalid("stop", f"expected {wanted}, found {shown(value)}")
    if "" in stops:
        raise invalid("stop", "expected strings that are not empty")
    return tuple(checked_string("stop", stop) for stop in stops)


def _logit_bias(value: Any, vocab_size: int) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid("logit_bias", f"expected an object of token ids, found {shown(value)}", "invalid_type")
    found = {}
    for key, bias in value.items():
        if not key.isascii() or not key.isdecimal() or len(key) > 12:
            raise invalid("logit_bias", f"expected token ids as names, found {shown(key)}")
        token = checked_integer("logit_bias", int(key), 0, vocab_size - 1)
        found[token] = checked_number("logit_bias", bias, -100, 100)
    return {token: float("-inf") if bias == -100 else bias for token, bias in found.items()}


def _constraint(fields: Fields) -> dict[str, Any]:
    """`response_format`, and as extensions `regex` and `grammar`."""
    found: dict[str, Any] = {}
    value = fields.take("response_format")
    if value is not None:
        schema = _response_format(Fields(value, "response_format"))
        if schema is not None:
            found["json_schema"] = schema
    for name in ("regex", "grammar"):
        text = fields.string(name)
        if text is not None:
            found[name] = text
    if len(found) > 1:
        raise invalid("response_format", f"expected one constraint, found {' and '.join(found)}")
    return found


def _response_format(fields: Fields) -> str | None:
    kind = fields.needed_string("type", FORMATS)
    schema: Any = None
    if kind == "json_object":
        schema = {"type": "object"}
    elif kind == "json_schema":
        inner = Fields(fields.take("json_schema"), "response_format.json_schema")
        inner.ignore(("name", "description", "strict"))
        schema = inner.take("schema")
        inner.finish()
        if not isinstance(schema, (dict, bool)):
            raise invalid("response_format.json_schema.schema", f"expected a schema, found {shown(schema)}")
    fields.finish()
    return None if kind == "text" else json.dumps(schema)


def refuse_candidates(fields: Fields, n: int) -> None:
    """`best_of`: more texts than are shown are not generated."""
    best_of = fields.integer("best_of", 1)
    if best_of is not None and best_of != n:
        raise unsupported("best_of", f"only the value of n, {n}, is supported, found {best_of}")
