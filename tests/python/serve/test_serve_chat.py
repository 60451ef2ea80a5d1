"""/v1/chat/completions, asked by OpenAI's own client."""

import json

import openai
import pytest
from served_engine import TOOL_TEMPLATE, FakeEngine

TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "now", "arguments": {"zone": "é"}}\n</tool_call>'


@pytest.fixture(scope="module")
def client(plain):
    with plain.client() as client:
        yield client


def ask(client, content="hello", **options):
    return client.chat.completions.create(model="fake", messages=[{"role": "user", "content": content}], **options)


def rendered(server):
    """What the template was given for the last request."""
    return json.loads(bytes(server.engine.requests[-1].prompt))


def test_an_answer(client, plain):
    plain.engine.reply = lambda prompt: "hi"
    answer = ask(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "hi", "stop")
    assert choice.message.tool_calls is None
    assert answer.usage.completion_tokens == 3
    assert rendered(plain) == {"messages": [{"role": "user", "content": "hello"}], "tools": None}
    assert plain.engine.requests[-1].options["continues"] is False


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit(client, plain, name):
    answer = ask(client, **{name: 1})
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("h", "length")


def test_without_a_limit_the_context_is_one(client, plain):
    ask(client)
    request = plain.engine.requests[-1]
    assert request.options["max_new_tokens"] == plain.engine.context_length - len(request.prompt)


def test_a_stream(client, plain):
    chunks = list(ask(client, stream=True))
    first, last = chunks[0].choices[0], chunks[-1].choices[0]
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hi"
    assert last.finish_reason == "stop"
    assert last.delta.content is None
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert all(chunk.usage is None for chunk in chunks)


def test_the_client_s_own_stream_helper(client, plain):
    with client.chat.completions.stream(model="fake", messages=[{"role": "user", "content": "a"}]) as stream:
        answer = stream.get_final_completion()
    assert answer.choices[0].message.content == "hi"


def test_several_answers_and_usage_in_a_stream(client, plain):
    *chunks, last = list(ask(client, stream=True, n=3, stream_options={"include_usage": True}))
    texts = ["", "", ""]
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["hi"] * 3
    assert last.usage.completion_tokens == 9


def test_logprobs(client, plain):
    content = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [(item.token, item.logprob, item.bytes) for item in content] == [("h", -1.04, [104]), ("i", -1.05, [105])]
    assert [(item.token, item.logprob) for item in content[0].top_logprobs] == [("h", -1.04), ("i", -1.05)]
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


def test_logprobs_in_a_stream(client, plain):
    whole = ask(client, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    chunks = ask(client, logprobs=True, top_logprobs=1, stream=True)
    pieces = [choice.logprobs.content for chunk in chunks if (choice := chunk.choices[0]).logprobs]
    assert [item for piece in pieces for item in piece] == whole


def test_messages_of_every_role(client, plain):
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": 1}'}}
    client.chat.completions.create(
        model="fake",
        messages=[
            {"role": "developer", "content": "rules"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "noon", "tool_call_id": "c1"},
        ],
        tools=[TOOL],
    )
    parsed = {**call, "function": {"name": "now", "arguments": {"zone": 1}}}
    assert rendered(plain)["messages"] == [
        {"role": "system", "content": "rules"},
        {"role": "user", "content": "a\nb", "name": "x"},
        {"role": "assistant", "content": "", "tool_calls": [parsed]},
        {"role": "tool", "content": "noon", "tool_call_id": "c1"},
    ]
    function = {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert rendered(plain)["tools"] == [{"type": "function", "function": function}]


def test_what_else_a_template_asks_for(client, plain):
    ask(client, extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert rendered(plain)["enable_thinking"] is False
    messages = [{"role": "assistant", "content": "a", "reasoning_content": "b"}]
    assert plain.post("chat/completions", {"model": "fake", "messages": messages}).status_code == 200
    assert rendered(plain)["messages"] == messages


def test_tools_can_be_left_out(client, plain):
    ask(client, tools=[TOOL], tool_choice="none")
    assert rendered(plain)["tools"] is None


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}}}, {"type": "integer"}),
    ],
)
def test_response_formats(client, plain, value, schema):
    ask(client, response_format=value)
    found = plain.engine.requests[-1].options.get("json_schema")
    assert (None if found is None else json.loads(found)) == schema


def with_tools(serve, text):
    return serve(FakeEngine(lambda _: text, chat_template=TOOL_TEMPLATE)).client()


def test_a_call_of_a_tool(serve):
    with with_tools(serve, f"Let me see.\n{CALL}") as client:
        choice = ask(client, tools=[TOOL]).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Let me see."
        (call,) = choice.message.tool_calls
        assert (call.type, call.function.name) == ("function", "now")
        assert json.loads(call.function.arguments) == {"zone": "é"}
        assert ask(client).choices[0].message.content == f"Let me see.\n{CALL}"


def test_a_call_in_a_stream(serve):
    with with_tools(serve, f"{CALL}\n{CALL}") as client:
        chunks = list(ask(client, tools=[TOOL], stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [(call.index, call.function.name) for call in calls] == [(0, "now"), (1, "now")]
    assert calls[0].id != calls[1].id
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def test_other_templates_leave_calls_as_text(serve):
    with serve(FakeEngine(lambda _: CALL)).client() as client:
        choice = ask(client, tools=[TOOL]).choices[0]
    assert (choice.message.content, choice.finish_reason) == (CALL, "stop")


def test_a_model_without_a_template(serve):
    with (
        serve(FakeEngine(chat_template=None)).client() as client,
        pytest.raises(openai.BadRequestError, match="the model has no chat template: use /v1/completions"),
    ):
        ask(client)


def test_a_template_that_refuses(client, plain):
    with pytest.raises(openai.BadRequestError, match="template refuses them: roles must alternate"):
        ask(client, "refused")
