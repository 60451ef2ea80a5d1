"""/v1/completions, asked by OpenAI's own client."""

import openai
import pytest
from served_engine import BEGIN, END, FakeEngine


@pytest.fixture(scope="module")
def client(plain):
    with plain.client() as client:
        yield client


def complete(client, prompt="one", **options):
    return client.completions.create(model="fake", prompt=prompt, **options)


def test_a_text(client, plain):
    answer = complete(client)
    assert answer.id.startswith("cmpl-")
    assert (answer.object, answer.model) == ("text_completion", "fake")
    choice = answer.choices[0]
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "after one", "stop", None)
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4, 10, 14)
    assert plain.engine.requests[-1].prompt == [BEGIN, *b"one"]


def test_the_defaults_are_openai_s(client, plain):
    complete(client)
    options = plain.engine.requests[-1].options
    assert options["max_new_tokens"] == 16
    assert (options["temperature"], options["top_p"]) == (1.0, 1.0)
    assert options["stop"] == ()
    assert options["speculative"] is True
    assert options.get("logprobs") is None


def test_every_option_reaches_the_engine(client, plain):
    complete(
        client,
        max_tokens=3,
        temperature=0.5,
        top_p=0.75,
        seed=11,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={"65": -100, "66": 2.5},
        stop=["\n", "zz"],
        user="somebody",
        extra_body={"top_k": 5, "min_p": 0.125, "repetition_penalty": 1.5, "ignore_eos": True, "speculative": False},
    )
    assert plain.engine.requests[-1].options == {
        "max_new_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 5,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {65: float("-inf"), 66: 2.5},
        "stop": ("\n", "zz"),
        "seed": 11,
        "ignore_eos": True,
        "speculative": False,
    }


def test_a_limit_and_stop_strings(client):
    assert complete(client, max_tokens=3).choices[0].finish_reason == "length"
    assert complete(client, max_tokens=3).choices[0].text == "aft"
    choice = complete(client, stop="r ").choices[0]
    assert (choice.text, choice.finish_reason) == ("after", "stop")


def test_prompts_of_every_form(client, plain):
    assert complete(client, list(b"ids")).choices[0].text == "after ids"
    assert plain.engine.requests[-1].prompt == list(b"ids")
    assert [choice.text for choice in complete(client, ["a", "b"]).choices] == ["after a", "after b"]
    lists = complete(client, [list(b"c"), list(b"d")])
    assert [choice.text for choice in lists.choices] == ["after c", "after d"]
    assert lists.usage.prompt_tokens == 2


def test_several_texts_have_seeds_of_their_own(client, plain):
    before = len(plain.engine.requests)
    answer = complete(client, ["a", "b"], n=2, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["after a", "after a", "after b", "after b"]
    requests = plain.engine.requests[before:]
    assert sorted((bytes(request.prompt[1:]), request.options["seed"]) for request in requests) == [
        (b"a", 7),
        (b"a", 8),
        (b"b", 7),
        (b"b", 8),
    ]


def test_negative_and_missing_seeds(client, plain):
    complete(client, seed=-1)
    assert plain.engine.requests[-1].options["seed"] == 2**64 - 1
    complete(client)
    first = plain.engine.requests[-1].options["seed"]
    complete(client)
    assert plain.engine.requests[-1].options["seed"] != first


def test_a_stream(client):
    chunks = list(complete(client, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "after one"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_at_the_end_of_a_stream(client):
    *chunks, last = list(complete(client, stream=True, stream_options={"include_usage": True}))
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (4, 10)
    assert all(chunk.usage is None for chunk in chunks)


def test_several_streams_in_one(client):
    texts = {}
    for chunk in complete(client, ["a", "b"], n=2, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + choice.text
    assert texts == {0: "after a", 1: "after a", 2: "after b", 3: "after b"}


def test_the_bytes_of_a_stream(plain):
    response = plain.complete("one", stream=True, max_tokens=2)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


def test_echo(client):
    choice = complete(client, echo=True, max_tokens=2).choices[0]
    assert choice.text == "oneaf"
    assert "".join(chunk.choices[0].text for chunk in complete(client, echo=True, max_tokens=2, stream=True)) == "oneaf"


def test_echo_alone_scores_a_prompt(client, plain):
    before = len(plain.engine.requests)
    answer = complete(client, "abc", echo=True, max_tokens=0, logprobs=1)
    assert len(plain.engine.requests) == before
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason) == ("abc", "length")
    assert choice.logprobs.tokens == ["<begin>", "a", "b", "c"]
    assert choice.logprobs.token_logprobs == [None, -0.97, -0.98, -0.99]
    assert choice.logprobs.text_offset == [0, 0, 1, 2]  # the text does not show what marks its beginning
    assert choice.logprobs.top_logprobs == [None, {"a": -0.97}, {"b": -0.98}, {"c": -0.99}]
    assert answer.usage.completion_tokens == 0


def test_logprobs(client):
    logprobs = complete(client, max_tokens=2, logprobs=2).choices[0].logprobs
    assert logprobs.tokens == ["a", "f"]
    assert logprobs.token_logprobs == [-0.97, -1.02]
    assert logprobs.top_logprobs == [{"a": -0.97, "b": -0.98}, {"f": -1.02, "g": -1.03}]
    assert logprobs.text_offset == [0, 1]


def test_no_top_logprobs(client):
    logprobs = complete(client, max_tokens=2, logprobs=0).choices[0].logprobs
    assert logprobs.token_logprobs == [-0.97, -1.02]
    assert logprobs.top_logprobs is None


def test_the_token_that_ends_a_text_has_no_logprob(client):
    choice = complete(client, "", logprobs=1).choices[0]
    assert choice.finish_reason == "stop"
    assert "".join(choice.logprobs.tokens) == "after "


def test_logprobs_in_a_stream_are_those_of_the_whole(client):
    whole = complete(client, echo=True, logprobs=1).choices[0]
    pieces = [chunk.choices[0] for chunk in complete(client, echo=True, logprobs=1, stream=True)]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [item for piece in pieces for item in getattr(piece.logprobs, name)]
        assert joined == getattr(whole.logprobs, name)


def test_tokens_that_are_parts_of_characters(serve):
    with serve(FakeEngine(lambda _: "é!")).client() as client:
        choice = complete(client, logprobs=0).choices[0]
    assert choice.text == "é!"
    assert choice.logprobs.tokens == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    assert choice.logprobs.text_offset == [0, 0, 1]


def test_a_constraint(client, plain):
    complete(client, extra_body={"regex": "[ab]+"})
    assert plain.engine.requests[-1].options["regex"] == "[ab]+"


def test_best_of_is_n_or_refused(client):
    assert len(complete(client, n=2, best_of=2).choices) == 2
    with pytest.raises(openai.BadRequestError, match="best_of: only the value of n, 1, is supported, found 3"):
        complete(client, best_of=3)


def test_the_end_token_is_no_text(client, plain):
    assert END not in plain.engine.requests[-1].prompt
    assert "<end>" not in complete(client).choices[0].text
