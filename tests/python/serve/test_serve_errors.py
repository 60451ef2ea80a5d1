"""Every failure is an error object of OpenAI's form, with a message that names the field."""

import json

import pytest
from served_engine import VOCAB, FakeEngine

COMPLETION = {"model": "fake", "prompt": "x"}
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}


def error_of(response, status):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def test_the_client_raises_its_own_errors(plain):
    import openai

    with plain.client() as client:
        with pytest.raises(openai.NotFoundError) as found:
            client.completions.create(model="other", prompt="x")
        assert found.value.code == "model_not_found"
        assert found.value.param == "model"
        with pytest.raises(openai.BadRequestError) as found:
            client.completions.create(model="fake", prompt="x", temperature=3)
        assert found.value.param == "temperature"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": None}, "model", "expected a string, found nothing"),
        ({"model": 3}, "model", "expected a string, found 3"),
        ({"temperature": "hot"}, "temperature", "expected a number from 0 to 2, found 'hot'"),
        ({"temperature": 2.5}, "temperature", "found 2.5"),
        ({"temperature": True}, "temperature", "found true"),
        ({"top_p": 0}, "top_p", "expected a number above 0 up to 1, found 0"),
        ({"top_k": VOCAB + 1}, "top_k", f"expected an integer from -1 to {VOCAB}"),
        ({"min_p": -0.1}, "min_p", "expected a number from 0 to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "above 0"),
        ({"presence_penalty": 2.1}, "presence_penalty", "from -2 to 2"),
        ({"frequency_penalty": []}, "frequency_penalty", "found a list"),
        ({"max_tokens": 0}, "max_tokens", "expected an integer at least 1, found 0"),
        ({"max_tokens": 1.5}, "max_tokens", "found 1.5"),
        ({"max_tokens": 10**30}, "max_tokens", "this server gives at most"),
        ({"n": 0}, "n", "from 1 to 128"),
        ({"n": 129}, "n", "from 1 to 128"),
        ({"seed": 2**64}, "seed", "expected an integer"),
        ({"seed": "x"}, "seed", "expected an integer"),
        ({"stream": 1}, "stream", "expected true or false, found 1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only with stream: true"),
        ({"stream": True, "stream_options": 1}, "stream_options", "expected an object, found 1"),
        ({"stream": True, "stream_options": {"a": 1}}, "stream_options.a", "unknown field"),
        ({"stop": [""]}, "stop", "not empty"),
        ({"stop": [1]}, "stop", "expected a string, found 1"),
        ({"stop": 1}, "stop", "a string or a list of at most 16 strings, found 1"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": "\ud800"}, "stop", "half of a surrogate pair"),
        ({"logit_bias": []}, "logit_bias", "expected an object of token ids, found a list"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "expected token ids as names, found 'a'"),
        ({"logit_bias": {str(VOCAB): 1}}, "logit_bias", f"from 0 to {VOCAB - 1}"),
        ({"logit_bias": {"1": 101}}, "logit_bias", "from -100 to 100"),
        ({"response_format": 1}, "response_format", "expected an object"),
        ({"response_format": {}}, "response_format.type", "expected a string, found nothing"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "expected 'text' or 'json_object'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "found null"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}},
            "response_format.json_schema.schema",
            "expected a schema, found 1",
        ),
        ({"response_format": {"type": "json_object"}, "regex": "a"}, "response_format", "one constraint"),
        ({"grammar": 1}, "grammar", "expected a string"),
        ({"nonsense": 1}, "nonsense", "unknown field; known are "),
    ],
)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_fields_of_both_endpoints(serve_limited, path, fields, param, words):
    body = {**(COMPLETION if path == "completions" else CHAT), **fields}
    headers = {"Content-Type": "application/json"}
    error = error_of(serve_limited.http.post(f"/v1/{path}", content=json.dumps(body), headers=headers), 400)
    assert error["param"] == param
    assert words in error["message"]
    assert error["message"].startswith(f"{param}: ")
    assert error["type"] == "invalid_request_error"


@pytest.fixture(scope="module")
def serve_limited():
    from running import Running

    with Running(FakeEngine(), max_tokens=100) as server:
        yield server
        assert server.engine.requests == []  # none of them has reached the engine


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": None}, "prompt", "found nothing"),
        ({"prompt": 3}, "prompt", "found 3"),
        ({"prompt": []}, "prompt", "expected at least one prompt, found none"),
        ({"prompt": [[]]}, "prompt", "expected at least one token, found none"),
        ({"prompt": [VOCAB]}, "prompt", f"from 0 to {VOCAB - 1}, found {VOCAB}"),
        ({"prompt": [-1]}, "prompt", "found -1"),
        ({"prompt": [True]}, "prompt", "found true"),
        ({"prompt": ["a", 1]}, "prompt", "expected a string, found 1"),
        ({"prompt": [[1], "a"]}, "prompt", "expected a list of token ids, found 'a'"),
        ({"prompt": "\udfff"}, "prompt", "half of a surrogate pair"),
        ({"prompt": ["a"] * 200}, None, "asks for 200 texts, and this server takes 160 at most"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"logprobs": True}, "logprobs", "expected an integer"),
        ({"echo": "yes"}, "echo", "expected true or false"),
        ({"suffix": "end"}, "suffix", "only put after the prompt"),
        ({"best_of": 2}, "best_of", "only the value of n"),
        ({"prompt": "x" * 5000}, "prompt", "the prompt has 5001 tokens, and the model's context holds 4096"),
        ({"messages": []}, "messages", "unknown field"),
    ],
)
def test_fields_of_completions(serve_limited, fields, param, words):
    body = json.dumps({**COMPLETION, **fields})
    headers = {"Content-Type": "application/json"}
    error = error_of(serve_limited.http.post("/v1/completions", content=body, headers=headers), 400)
    assert error["param"] == param
    assert words in error["message"]


USER = {"role": "user", "content": "x"}
NOW = {"name": "now"}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": None}, "messages", "expected at least one message"),
        ({"messages": "x"}, "messages", "expected a list, found 'x'"),
        ({"messages": ["x"]}, "messages[0]", "expected an object, found 'x'"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role", "found nothing"),
        ({"messages": [{**USER, "role": "god"}]}, "messages[0].role", "expected 'system' or"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "found null"),
        ({"messages": [{**USER, "content": []}]}, "messages[0].content", "found a list"),
        ({"messages": [{**USER, "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "text only"),
        ({"messages": [{**USER, "content": [{"type": "text"}]}]}, "messages[0].content[0].text", "found nothing"),
        ({"messages": [{**USER, "extra": 1}]}, "messages[0].extra", "unknown field"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id", "found nothing"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "an object as JSON text",
        ),
        ({"top_logprobs": 2}, "top_logprobs", "only with logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"logprobs": 3}, "logprobs", "expected true or false"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "at least 1"),
        ({"modalities": ["audio"]}, "modalities", "only text"),
        ({"functions": [NOW]}, "functions", "use tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "no such setting"),
        ({"tools": [{"type": "search"}]}, "tools[0].type", "expected 'function'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "expected an object"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name", "found nothing"),
        (
            {"tools": [{"type": "function", "function": {**NOW, "strict": True}}]},
            "tools[0].function.strict",
            "not constrained",
        ),
        (
            {"tools": [{"type": "function", "function": {**NOW, "parameters": 1}}]},
            "tools[0].function.parameters",
            "expected a schema",
        ),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs", "expected an object"),
        (
            {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
            "chat_template_kwargs.chat_template",
            "the server sets it itself",
        ),
        ({"tool_choice": "required"}, "tool_choice", "only auto and none"),
        ({"messages": [{**USER, "content": "x" * 5000}]}, "messages", "the model's context holds 4096"),
        ({"prompt": "x"}, "prompt", "unknown field"),
    ],
)
def test_fields_of_chat(serve_limited, fields, param, words):
    error = error_of(serve_limited.post("chat/completions", {**CHAT, **fields}), 400)
    assert error["param"] == param
    assert words in error["message"]


def test_what_is_nothing_is_as_good_as_absent(plain):
    nothing = dict.fromkeys(("temperature", "stop", "n", "seed", "suffix", "stream", "unknown", "logit_bias"))
    assert plain.post("completions", {**COMPLETION, **nothing}).status_code == 200
    assert plain.post("completions", {**COMPLETION, "suffix": ""}).status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON: Expecting property name enclosed in double quotes (line 1, column 2)"),
        (b'{"model": "fake",\n "prompt": }', "line 2"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[]", "expected an object, found a list"),
        (b'"x"', "expected an object, found 'x'"),
        (b"null", "expected an object, found null"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:20]),
)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_bodies_that_are_no_requests(plain, path, body, words):
    response = plain.http.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
    error = error_of(response, 400)
    assert words in error["message"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_types_of_content(plain, headers):
    response = plain.http.post("/v1/completions", content=json.dumps(COMPLETION), headers=headers)
    assert error_of(response, 415)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("GET", "/v1/models/", 404, "model_not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
    ],
)
def test_other_paths_and_methods(plain, method, path, status, code):
    assert error_of(plain.http.request(method, path), status)["code"] == code


def test_models(plain):
    with plain.client() as client:
        (model,) = client.models.list().data
        assert (model.id, model.object, model.owned_by) == ("fake", "model", "tmac")
        assert client.models.retrieve("fake") == model


def test_a_model_with_a_slash(serve):
    server = serve(model_name="owner/name")
    with server.client() as client:
        assert client.models.retrieve("owner/name").id == "owner/name"


def test_what_the_engine_refuses(serve):
    server = serve()
    server.engine.refusal = ValueError("json_schema: a schema of a kind that is not known")
    for fields in ({}, {"stream": True}):
        error = error_of(server.complete(**fields), 400)
        assert error["param"] == "json_schema"
        assert error["message"] == "json_schema: a schema of a kind that is not known"
    server.engine.refusal = ImportError("json_schema, grammar and regex need llguidance: pip install 'x'")
    assert "llguidance" in error_of(server.complete(), 400)["message"]


def test_an_engine_that_is_full_or_closed(serve):
    from tmac.runtime.scheduler import QueueFullError

    server = serve()
    server.engine.refusal = QueueFullError("[Engine] 9 requests run or wait: try again later")
    response = server.complete()
    assert error_of(response, 429)["code"] == "queue_full"
    assert response.headers["retry-after"] == "1"
    server.engine.refusal = RuntimeError("[Engine] it is closed")
    assert error_of(server.complete(), 503)["code"] == "unavailable"


def test_an_engine_that_fails(serve, caplog):
    server = serve()
    server.engine.failure = (1, ValueError("[sample] a logit is NaN, and the prompt was a secret"))
    assert error_of(server.complete(), 500)["code"] == "internal_error"
    assert "ValueError" in caplog.text
    assert "served_engine.py" in caplog.text
    assert "secret" not in caplog.text
    server.engine.failure = None
    assert server.complete().status_code == 200


def test_a_prompt_for_which_the_cache_is_too_small(serve):
    server = serve()
    server.engine.failure = (1, ValueError("prompt: its 9 tokens do not fit into the cache: full"))
    assert error_of(server.complete(), 400)["code"] == "context_length_exceeded"


def test_a_failure_in_the_middle_of_a_stream(serve):
    import openai

    server = serve()
    server.engine.failure = (4, ValueError("NaN"))
    *events, last = server.complete(stream=True).text.split("\n\n")[:-1]
    assert [json.loads(event[6:])["choices"][0]["text"] for event in events] == ["a", "f", "t"]
    assert json.loads(last[6:])["error"]["code"] == "internal_error"
    with server.client() as client, pytest.raises(openai.APIError, match="an error inside the server"):
        list(client.completions.create(model="fake", prompt="x", stream=True))


def test_an_error_that_nobody_foresaw(serve, monkeypatch, caplog):
    server = serve()
    monkeypatch.setattr(server.service, "check_model", lambda _: 1 // 0)
    assert error_of(server.complete(), 500)["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert server.complete().status_code == 200
