"""Chat templates against transformers' own rendering, and what hostile ones get."""

import time

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tmac.runtime import chat_template
from tmac.runtime.chat_template import ChatTemplate, ChatTemplates

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Says <how> it\'s & "feels" in a city: 日本',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CONVERSATIONS = {
    "one": [{"role": "user", "content": " Hello <b>\n"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "日本 🙂"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "Wet.", "reasoning": "It rains."},
        {"role": "user", "content": "Thanks"},
    ],
}
CHATML = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{% endif %}"""
WITH_TOOLS = """{{- bos_token }}
{%- if tools %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}{{ tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n" }}
{%- endif %}
{%- set ns = namespace(last=-1, seen=[]) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and ns.last < 0 %}{%- set ns.last = index %}{%- break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = '' %}
    {%- if message.content is string %}{%- set content = message.content %}{%- endif %}
    {%- if message.role == "assistant" %}
        {{- '[A]' }}{% generation %}{{ content }}{% if message.reasoning_content is defined %}
<think>{{ message.reasoning_content|trim }}</think>{% endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '<call>' ~ call.name ~ ': ' ~ (call.arguments | tojson(indent=2)) ~ '</call>' }}
        {%- endfor %}{% endgeneration %}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role == 'tool' %}{%- continue %}{%- endif %}
        {{- '[T]' + content }}
    {%- else %}
        {{- '[' + message.role[0]|upper + ':' ~ loop.index ~ '/' ~ loop.length ~ ']' + content.strip() }}
    {%- endif %}
{%- endfor %}
{{- ns.last }}{% if add_generation_prompt %}{{ '[A]' }}{% endif %}
{%- if enable_thinking is defined %}{{ enable_thinking }}{% endif %}
{{- eos_token }}"""
MACROS = """{%- macro show(value, depth=0) -%}
{%- if value is mapping -%}
{%- for key, item in value.items()|sort -%}{{ '  ' * depth }}{{ key }}={{ show(item, depth + 1) }};{%- endfor -%}
{%- elif value is iterable and value is not string -%}
{%- for item in value -%}{{ show(item, depth + 1) }},{%- endfor -%}
{%- else -%}{{ value }}{%- endif -%}
{%- endmacro -%}
{%- set names = dict(user='U', assistant='B') -%}
{%- for message in messages -%}
{{ names.get(message.role, message.role|title) }}{{ '%s|%03d' % (message.role, loop.index) }}
{{ show(message) }}{{ "{}".format(loop.last) }}{{ message.content|default('none', true)|replace('l', 'L') }}
{%- endfor -%}
{% for i in range(3) %}{{ loop.cycle('a', 'b') }}{{ i * 2 ** 2 }}{% endfor %}
{% filter upper %}end{% endfilter %}{% set x | lower %}ABC{% endset %}{{ x }}
{%- for message in messages if message.role == 'user' -%}{{ loop.revindex }}{%- else -%}nobody{%- endfor -%}"""
DOUBLING = "{% set ns = namespace(x='aa') %}{% for i in range(99) %}"
TEMPLATES = {"chatml": CHATML, "tools": WITH_TOOLS, "macros": MACROS}


def by_transformers(source, messages, **options):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), chat_template=source, **SPECIAL
    )
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, [TOOL]])
@pytest.mark.parametrize("messages", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_renders_it(name, messages, tools, prompt):
    options = {"tools": tools, "add_generation_prompt": prompt, "enable_thinking": False}
    ours = ChatTemplates({"default": TEMPLATES[name]}, SPECIAL).render(CONVERSATIONS[messages], **options)
    assert ours == by_transformers(TEMPLATES[name], CONVERSATIONS[messages], **options)
    assert len(ours) > 10


def test_the_date():
    source = "{{ strftime_now('%Y') }}"
    assert ChatTemplate(source).render([{}]) == by_transformers(source, [{}]) == time.strftime("%Y")


def test_named_templates():
    templates = ChatTemplates({"default": "plain", "tool_use": "tools", "rag": "rag"})
    messages = [{"role": "user", "content": "x"}]
    assert templates.render(messages) == "plain"
    assert templates.render(messages, tools=[TOOL]) == "tools"
    assert templates.render(messages, chat_template="rag") == "rag"
    assert templates.render(messages, chat_template="{{ messages[0].content }}") == "x"
    with pytest.raises(ValueError, match="expected one of rag, other as chat_template="):
        ChatTemplates({"rag": "rag", "other": ""}).render(messages)


def test_a_template_sees_plain_values():
    class Text(str):
        __slots__ = ()

        def secret(self):
            return "secret"

    message = {"role": Text("user"), "content": object(), "number": np.float32(0.5), "flag": np.bool_(False)}
    source = "{{ messages[0].role }} {{ messages[0].content }} {{ messages[0].number }} {{ messages[0].flag }}"
    assert ChatTemplate(source).render([message]) == "user <object> 0.5 False"
    with pytest.raises(ValueError, match="has no attribute 'secret'"):
        ChatTemplate("{{ messages[0].role.secret() }}").render([message])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "the template is no Jinja"),
        ("{{ x", "the template is no Jinja"),
        ("{% include 'other' %}", "no loader"),
        ("{{ raise_exception('roles must alternate') }}", r"\[chat_template\] roles must alternate"),
        ("{{ messages.__class__.__mro__ }}", "may not do: access to attribute '__class__'"),
        ("{{ ''.__class__.x }}", "may not do"),
        ("{{ raise_exception.__globals__.x }}", "may not do"),
        ("{{ namespace.__init__.x }}", "may not do"),
        ("{% set ns = namespace(a=1) %}{% set ns._b = 2 %}", "cannot begin with an underscore"),
        ("{% set _ = messages.append(1) %}", "may not do"),
        ("{{ messages[7].content }}", "has no element 7"),
        ("{{ 1 / 0 }}", "the template fails: ZeroDivisionError"),
        ("{{ messages + 1 }}", "the template fails: TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the template fails: RecursionError"),
        ("{{ range(10 ** 9)|list }}", "Range too big"),
        ("{{ 'a' * 10 ** 9 }}", "value of more than"),
        ("{{ 9 ** 99999 }}", "large powers"),
        ("{{ 'a'.ljust(10 ** 9) }}", "text of more than"),
        ("{{ '{:>1000000000}'.format(1) }}", "formats a text of more than"),
        ("{{ '%1000000000d' % 1 }}", "formats a text of more than"),
        ("{{ messages|tojson(indent=10 ** 9) }}", "indents by more than"),
        (
            "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "more than",
        ),
        (
            "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "more than",
        ),
        ("{% for i in range(99999) %}{{ 'a' * 100 }}{% endfor %}", "writes more than"),
    ],
)
def test_broken_and_hostile_templates(source, message):
    start = time.monotonic()
    with pytest.raises(ValueError, match=message) as caught:
        ChatTemplate(source).render([{"role": "user", "content": "x"}])
    assert str(caught.value).startswith("[chat_template]")
    assert time.monotonic() - start < chat_template.MAX_SECONDS


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999)|sum %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    ],
)
def test_templates_without_an_end(monkeypatch, source):
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"takes more than 0\.2 seconds"):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_messages_that_are_none():
    for messages in ([], ["text"]):
        with pytest.raises(ValueError, match=r"\[chat_template\] expected"):
            ChatTemplate("x").render(messages)
    with pytest.raises(ValueError, match="expected at most"):
        ChatTemplate("x" * (chat_template.MAX_TEMPLATE + 1))
