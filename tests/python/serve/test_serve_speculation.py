"""Engines with a draft behind the server: the same texts, and counters of what was guessed."""

from pathlib import Path

import openai
import pytest
from running import Running
from served_engine import FakeEngine

from tmac.runtime.speculation.stats import SpeculationStats

GUESSED = SpeculationStats("ngram", drafted=[3, 2], accepted=[2, 1])
OFF = {"extra_body": {"speculative": False}}


@pytest.fixture
def server(serve):
    engine = FakeEngine()
    engine.speculation = GUESSED
    return serve(engine)


def counted(server):
    return server.metric("tmac_drafted_tokens_total"), server.metric("tmac_accepted_tokens_total")


def test_guesses_are_counted(server):
    with server.client() as client:
        assert counted(server) == (0, 0)
        client.completions.create(model="fake", prompt=["a", "b"], max_tokens=3)
        assert counted(server) == (10, 6)
        client.chat.completions.create(model="fake", messages=[{"role": "user", "content": "a"}], stream=False)
        assert counted(server) == (15, 9)
    assert "# TYPE tmac_accepted_tokens_total counter" in server.http.get("/metrics").text


def test_a_request_may_do_without(server):
    with server.client() as client:
        client.completions.create(model="fake", prompt="a", **OFF)
        messages = [{"role": "user", "content": "a"}]
        client.chat.completions.create(model="fake", messages=messages, **OFF)
    assert counted(server) == (0, 0)
    assert [request.options["speculative"] for request in server.engine.requests] == [False, False]


def test_the_field_is_a_flag(server):
    with server.client() as client, pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model="fake", prompt="a", extra_body={"speculative": "no"})
    assert found.value.param == "speculative"
    assert "expected true or false" in found.value.message


def test_a_draft_changes_no_text():
    pytest.importorskip("tokenizers", reason="needs the extra tmac-cpu[engine]")
    from tmac.runtime.engine import Engine

    path = Path(__file__).parents[2] / "data" / "tiny_llama.gguf"
    options = {"model": "fake", "prompt": "a b a b a b", "max_tokens": 60, "logprobs": 1}
    with Engine.from_pretrained(path, draft="ngram") as engine, Running(engine) as server, server.client() as client:
        for sampling in ({"temperature": 0}, {"temperature": 1.0, "seed": 3}):
            texts = [
                client.completions.create(**options, **sampling, extra_body={"speculative": on, "ignore_eos": True})
                for on in (True, False, True)
            ]
            assert texts[0].choices == texts[1].choices == texts[2].choices
            assert texts[0].usage.completion_tokens == 60
        assert server.metric("tmac_accepted_tokens_total") <= server.metric("tmac_drafted_tokens_total")
