"""Chat templates: Jinja out of files from the hub, in a sandbox, with what transformers gives a template.

A template may be hostile. It sees plain JSON values only, and what it can do is bounded: the length of its texts, and
the time that its loops and calls take (utils/chat_template_utils.py of transformers; the bounds are ours).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 10.0
MAX_LENGTH = 1 << 22  # of a text or list that a template makes on its way; a prompt is shorter
MAX_TEMPLATE = 1 << 20
WIDTH = re.compile(r"\d{6,}|\*")  # in a format
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A compiled template.

    Args:
        source: Jinja.

    Raises:
        ValueError: it is no Jinja, or too long.

    Example:
        >>> ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}").render([{"content": "hi"}])
        '[hi]'
    """

    def __init__(self, source: str) -> None:
        if len(source) > MAX_TEMPLATE:
            raise ValueError(f"[chat_template] expected at most {MAX_TEMPLATE} characters, found {len(source)}")
        self.source = source
        self._environment = _Environment()
        try:
            self._template = self._environment.from_string(self._environment.bounded(source))
        except (jinja2.TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            raise ValueError(f"[chat_template] the template is no Jinja: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The prompt.

        Args:
            messages: with "role" and "content"; a key whose value is None counts as missing.
            tools: JSON schemas of functions that the model may call.
            add_generation_prompt: ends with what makes the model answer.
            variables: what else the template may ask for: special tokens, `enable_thinking`, `documents`.

        Raises:
            ValueError: there are no messages, or the template refuses them, fails, or goes beyond its bounds.
        """
        if not messages:
            raise ValueError("[chat_template] expected at least one message")
        if not all(isinstance(message, Mapping) for message in messages):
            raise ValueError("[chat_template] expected messages with a role and a content each")
        content = {
            "messages": [_with_reasoning(plain(message)) for message in messages],
            "tools": plain(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **{name: plain(value) for name, value in variables.items()},
        }
        self._environment.start()
        try:
            return "".join(self._pieces(content))
        except SecurityError as error:
            raise ValueError(f"[chat_template] the template does what it may not do: {error}") from error
        except jinja2.TemplateError as error:
            raise ValueError(f"[chat_template] {error}") from error
        except (
            TypeError,
            ValueError,
            LookupError,
            ArithmeticError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise ValueError(f"[chat_template] the template fails: {type(error).__name__}: {error}") from error

    def _pieces(self, content: Mapping[str, Any]) -> Iterator[str]:
        length = 0
        for piece in self._template.generate(content):
            length += len(piece)
            if length > MAX_LENGTH:
                raise SecurityError(f"it writes more than {MAX_LENGTH} characters")
            yield piece


class ChatTemplates:
    """The templates of a model, with its special tokens.

    Args:
        templates: Jinja by name; "default" and "tool_use" are found by themselves.
        special: `bos_token` and the like, which templates ask for.
    """

    def __init__(self, templates: Mapping[str, str], special: Mapping[str, str] | None = None) -> None:
        self.templates, self.special = dict(templates), dict(special or {})
        self._compiled: tuple[str, ChatTemplate] | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation; it is encoded without special tokens, for it has its own.

        Args:
            messages: with "role" and "content".
            add_generation_prompt: ends with what makes the model answer.
            tools: JSON schemas of functions that the model may call.
            chat_template: the name of one of `templates`, or Jinja.
            variables: what else the template may ask for.

        Raises:
            ValueError: as `ChatTemplate`, or no template has been chosen.
        """
        source = self.source(chat_template, tools is not None)
        compiled = self._compiled
        if compiled is None or compiled[0] != source:
            self._compiled = compiled = (source, ChatTemplate(source))
        values = {**self.special, **variables}
        return compiled[1].render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **values)

    def source(self, given: str | None = None, with_tools: bool = False) -> str:
        """The template that `render` takes. Raises ValueError where there are several and none is the default."""
        if given is not None:
            return self.templates.get(given, given)
        for name in ("tool_use", "default") if with_tools else ("default",):
            if name in self.templates:
                return self.templates[name]
        raise ValueError(f"[chat_template] expected one of {', '.join(self.templates)} as chat_template=")


def plain(value: Any) -> Any:
    """The value as JSON has it; anything else becomes the name of its type, so that a template gets no live object."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, np.generic):
        return plain(value.item())
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Without keys that are None; what a model thought under each of the names that templates ask for."""
    message = {key: value for key, value in message.items() if value is not None}
    thought = next((message[key] for key in REASONING if key in message), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


class _Generation(Extension):
    """`{% generation %}`, which marks what the model said in training data: here just its content."""

    tags = {"generation"}  # noqa: RUF012  jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        line = next(parser.stream).lineno
        return [nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)]


class _Dict:
    """`dict`, without the type's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Namespace(jinja2.utils.Namespace):
    """`namespace`, without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"namespace attributes cannot begin with an underscore: {name!r}")
        super().__setitem__(name, value)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one template. Loops and calls look at the clock; texts that grow are measured."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], optimized=False
        )  # fmt: skip
        self.filters.update(tojson=_tojson, tmac_counted=self.counted, tmac_measured=self.measured)
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=lambda form: datetime.now().strftime(form),
            dict=_Dict(),
            namespace=_Namespace,
        )
        self.end = 0.0

    def start(self) -> None:
        """Sets the clock."""
        self.end = time.monotonic() + MAX_SECONDS

    def bounded(self, source: str) -> nodes.Template:
        """The parsed template whose loops are counted and whose concatenations are measured."""
        tree = self.parse(source)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = nodes.Filter(loop.iter, "tmac_counted", [], [], None, None).set_lineno(loop.lineno)
        bounded: nodes.Template = self._measure(tree)
        bounded.set_environment(self)
        return bounded

    def _measure(self, node: Any) -> Any:
        for field, value in list(node.iter_fields()):
            if isinstance(value, nodes.Node):
                setattr(node, field, self._measure(value))
            elif isinstance(value, list):
                setattr(node, field, [self._measure(each) if isinstance(each, nodes.Node) else each for each in value])
        if isinstance(node, (nodes.Concat, nodes.Filter)) and getattr(node, "name", "") != "tmac_counted":
            return nodes.Filter(node, "tmac_measured", [], [], None, None).set_lineno(node.lineno)
        return node

    def counted(self, items: Iterable[Any]) -> Any:
        """What a loop goes over."""
        if isinstance(items, jinja2.Undefined):
            return items
        return _Watched(items, self.check_time)

    def measured(self, value: Any) -> Any:
        """A value that a template made."""
        self.check_time()
        if isinstance(value, (str, list, tuple)) and len(value) > MAX_LENGTH:
            raise SecurityError(f"it makes a value of more than {MAX_LENGTH} parts")
        return value

    def check_time(self) -> None:
        """Raises SecurityError when the time is over."""
        if time.monotonic() > self.end:
            raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+`, `*`, `**` and `%`, of operands whose result is of a known size."""
        self.check_time()
        if operator == "**" and not _is_small_power(left, right):
            raise SecurityError("it raises numbers to large powers")
        if operator == "*":
            texts = [each for each in (left, right) if isinstance(each, (str, list, tuple))]
            counts = [each for each in (left, right) if isinstance(each, int)]
            if texts and counts and len(texts[0]) * counts[0] > MAX_LENGTH:
                raise SecurityError(f"it makes a value of more than {MAX_LENGTH} parts")
            if len(counts) == 2 and sum(each.bit_length() for each in counts) > 4096:
                raise SecurityError("it makes a number of more than 4096 bits")
        if operator == "%" and isinstance(left, str) and WIDTH.search(left):
            raise SecurityError(f"it formats a text of more than {MAX_LENGTH} characters")
        return self.measured(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`format` of a text, which may ask for any width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and WIDTH.search(value.__self__):
            raise SecurityError(f"it formats a text of more than {MAX_LENGTH} characters")
        return wrapped

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  jinja's names
        """Any call: methods of texts take no widths beyond the longest text."""
        __self.check_time()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            for value in (*args, *kwargs.values()):
                if isinstance(value, int) and abs(value) > MAX_LENGTH:
                    raise SecurityError(f"it makes a text of more than {MAX_LENGTH} characters")
            if __obj.__name__ == "replace" and len(args) > 1:
                found = owner.count(str(args[0])) * len(str(args[1]))
                if found > MAX_LENGTH:
                    raise SecurityError(f"it makes a text of more than {MAX_LENGTH} characters")
        return __self.measured(super().call(__context, __obj, *args, **kwargs))


class _Watched:
    """An iterable that looks at the clock at every step; its length is that of the items, where they have one."""

    def __init__(self, items: Iterable[Any], check: Callable[[], None]) -> None:
        self.items, self.check = items, check

    def __len__(self) -> int:
        if not isinstance(self.items, Sized):
            raise TypeError("these items have no length")
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            self.check()
            yield item


def _is_small_power(left: Any, right: Any) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left.bit_length() * max(right, 1) <= 4096
    return isinstance(left, float) or isinstance(right, float)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes of HTML that Jinja's own filter adds."""
    if isinstance(indent, int) and indent > 64:
        raise SecurityError("it indents by more than 64 spaces")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
