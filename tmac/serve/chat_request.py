"""The body of /v1/chat/completions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tmac.serve.errors import invalid, unsupported
from tmac.serve.fields import Fields, checked_string, shown
from tmac.serve.generation_fields import Generation, read_generation
from tmac.serve.settings import MOST_LOGPROBS, Settings

ROLES = ("system", "developer", "user", "assistant", "tool")
REFUSED = {
    "modalities": "only text",
    "audio": "only text",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "prediction": "not supported",
    "reasoning_effort": "the model has no such setting",
    "verbosity": "the model has no such setting",
    "web_search_options": "this server searches nothing",
}
OWN_VARIABLES = {"messages", "tools", "add_generation_prompt", "chat_template"}
IGNORED = ("parallel_tool_calls", "prompt_cache_retention")


@dataclass(frozen=True)
class ChatRequest:
    """What it asks for.

    Args:
        model: whose answers.
        messages: as chat templates take them.
        tools: as chat templates take them, or None.
        variables: what else the template is given.
        logprobs: so many most likely tokens at each place; None: no log-probabilities.
        generation: the rest.
    """

    model: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    logprobs: int | None
    generation: Generation


def read_chat(body: Any, settings: Settings, vocab_size: int) -> ChatRequest:
    """Reads the parsed JSON.

    Raises:
        ApiError: a field is missing, wrong or unknown.
    """
    fields = Fields(body)
    model = fields.needed_string("model")
    messages = _messages(fields)
    tools = _tools(fields)
    variables = _variables(fields)
    logprobs = _logprobs(fields)
    max_tokens = fields.integer("max_completion_tokens", 1)
    older = fields.integer("max_tokens", 1)
    fields.refuse(REFUSED, {"modalities": ["text"]})
    fields.ignore(IGNORED)
    generation = read_generation(fields, settings, vocab_size, older if max_tokens is None else max_tokens)
    fields.finish()
    if logprobs is not None:
        generation.options["logprobs"] = logprobs
    return ChatRequest(model, messages, tools, variables, logprobs, generation)


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, MOST_LOGPROBS)
    if top is not None and not wanted:
        raise invalid("top_logprobs", "only with logprobs: true")
    return (top or 0) if wanted else None


def _variables(fields: Fields) -> dict[str, Any]:
    """What the template may ask for, `enable_thinking` for instance; but not another template."""
    name = "chat_template_kwargs"
    value = fields.take(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, f"expected an object, found {shown(value)}", "invalid_type")
    taken = sorted(value.keys() & OWN_VARIABLES)
    if taken:
        raise unsupported(f"{name}.{taken[0]}", "the server sets it itself")
    return value


def _messages(fields: Fields) -> list[dict[str, Any]]:
    values = fields.list("messages")
    if not values:
        raise invalid("messages", "expected at least one message, found none", "missing_required_parameter")
    return [_message(Fields(value, f"messages[{place}]")) for place, value in enumerate(values)]


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.needed_string("role", ROLES)
    calls = _calls(fields) if role == "assistant" else []
    message: dict[str, Any] = {
        "role": "system" if role == "developer" else role,
        "content": _content(fields.take("content"), fields.name("content"), optional=bool(calls)),
    }
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message["tool_call_id"] = fields.needed_string("tool_call_id")
    name = fields.string("name")
    if name is not None:
        message["name"] = name
    thought = fields.string("reasoning_content")
    if thought is not None:
        message["reasoning_content"] = thought
    fields.ignore(("refusal", "annotations", "audio", "function_call"))
    fields.finish()
    return message


def _content(value: Any, name: str, *, optional: bool) -> str:
    """A text, or text parts, which are put under each other."""
    if isinstance(value, str):
        return checked_string(name, value)
    if value is None and optional:
        return ""
    if not isinstance(value, list) or not value:
        raise invalid(name, f"expected a text or a list of text parts, found {shown(value)}", "invalid_type")
    texts = []
    for place, item in enumerate(value):
        part = Fields(item, f"{name}[{place}]")
        kind = part.needed_string("type")
        if kind != "text":
            raise unsupported(part.name("type"), f"the model reads text only, found {shown(kind)}")
        texts.append(part.needed_string("text"))
        part.finish()
    return "\n".join(texts)


def _calls(fields: Fields) -> list[dict[str, Any]]:
    """Earlier calls of tools; templates want their arguments as objects."""
    calls = []
    for place, value in enumerate(fields.list("tool_calls")):
        call = Fields(value, f"{fields.name('tool_calls')}[{place}]")
        function = Fields(call.take("function"), call.name("function"))
        name, text = function.needed_string("name"), function.needed_string("arguments")
        try:
            arguments = json.loads(text)
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise invalid(function.name("arguments"), "expected an object as JSON text")
        calls.append(
            {
                "id": call.string("id"),
                "type": call.string("type", "function", ("function",)),
                "function": {"name": name, "arguments": arguments},
            }
        )
        function.finish()
        call.ignore(("index",))
        call.finish()
    return calls


def _tools(fields: Fields) -> list[dict[str, Any]] | None:
    tools = []
    for place, value in enumerate(fields.list("tools")):
        tool = Fields(value, f"tools[{place}]")
        kind = tool.needed_string("type", ("function",))
        function = Fields(tool.take("function"), tool.name("function"))
        described: dict[str, Any] = {"name": function.needed_string("name")}
        described["description"] = function.string("description", "")
        parameters = function.take("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise invalid(function.name("parameters"), f"expected a schema, found {shown(parameters)}", "invalid_type")
        described["parameters"] = parameters if parameters is not None else {"type": "object", "properties": {}}
        if function.flag("strict"):
            raise unsupported(function.name("strict"), "calls of tools are not constrained")
        function.finish()
        tool.finish()
        tools.append({"type": kind, "function": described})
    choice = fields.take("tool_choice")
    if choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", "only auto and none are supported: the model decides")
    return tools if tools and choice != "none" else None
