"""Weights that stream from a disk, and a draft that goes on meanwhile: the text is that of the model in memory."""

import os
import signal
import sys
import threading

import pytest
from drafts_for_tests import EagerController, paced, same
from streamed import open_streamed, streaming

import tmac
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.streaming import load
from tmac.runtime.streaming.plan import make_plan

PROMPT = list(range(3, 40))
OPTIONS = {"max_new_tokens": 40, "ignore_eos": True, "logprobs": 1}
SLOW = 4e6  # bytes a second


@pytest.fixture(scope="module")
def checkpoint(repository):
    return repository / "tests" / "data" / "tiny_llama.gguf"


@pytest.fixture(scope="module")
def expected(checkpoint):
    with tmac.Engine.from_pretrained(checkpoint) as engine:
        return [engine.generate(prompt, **OPTIONS) for prompt in (PROMPT, PROMPT[5:])]


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "packed"))


NAMES = ["model:PATH", "planes:3", "ngram+planes:3", "auto"]


def opened(checkpoint, name, monkeypatch, **options):
    streaming(monkeypatch, planes=3 if "planes" in name or name == "auto" else None)
    engine = open_streamed(checkpoint, draft=name.replace("PATH", str(checkpoint)), **options)
    engine.streamed.slow_down(SLOW)
    return engine


@pytest.mark.parametrize("name", NAMES)
def test_the_text_is_that_of_the_model_in_memory(checkpoint, expected, name, monkeypatch):
    with opened(checkpoint, name, monkeypatch) as engine:
        speculator = engine._passes._speculator
        same(engine.generate(PROMPT, **OPTIONS), expected[0])  # as it is worth it
        if name == "auto" and not speculator.pipeline:
            return  # planes were measured not to be worth it
        assert speculator.pipeline
        speculator.controller = EagerController()
        run, second = speculator._run, paced(speculator, 4)

        def waiting(*args, **options):
            logits = run(*args, **options)
            second.wait()
            return logits

        speculator._run = waiting
        for prompt, wanted in zip((PROMPT, PROMPT[5:], PROMPT), [*expected, expected[0]], strict=True):
            result = engine.generate(prompt, **OPTIONS)
            same(result, wanted)
            assert result.speculation.error is None
        assert result.speculation.ahead_passes >= result.speculation.ahead_kept >= (name == "model:PATH")
        for result, wanted in zip(engine.generate([PROMPT, PROMPT[5:]], **OPTIONS), expected, strict=True):
            same(result, wanted)


def test_planes_have_a_decoder_of_their_own_where_passes_read(checkpoint, expected, monkeypatch):
    with opened(checkpoint, "planes:3", monkeypatch, context_length=128) as engine:
        draft = engine._passes._speculator.draft
        assert isinstance(draft, ModelDraft)
        assert (draft.name, draft.context_length) == ("planes:3", 128)
        own = engine.streamed.plan.fixed["draft"]
        engine.generate(PROMPT, **OPTIONS)
        assert own >= draft.decoder.cache_bytes > 0
    monkeypatch.setattr(load, "make_plan", make_plan)
    with open_streamed(checkpoint, draft="planes:3") as engine:  # everything fits
        assert engine.streamed.plan.streamed == engine.streamed.plan.fixed["draft"] == 0
        assert isinstance(engine._passes._speculator.draft, PlanesDraft)
        assert not engine._passes._speculator.pipeline
        same(engine.generate(PROMPT, **OPTIONS), expected[0])


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_ctrl_c_while_a_pass_reads_and_the_draft_goes_on(checkpoint, expected, monkeypatch):
    with opened(checkpoint, "planes:3", monkeypatch) as engine:
        engine._passes._speculator.controller = EagerController()
        for _ in range(2):
            engine.streamed.slow_down(SLOW / 50)
            timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
            timer.start()
            with pytest.raises(KeyboardInterrupt):
                engine.generate(PROMPT, **{**OPTIONS, "max_new_tokens": 200})
            timer.join()
            engine.streamed.slow_down(SLOW)
            same(engine.generate(PROMPT, **OPTIONS), expected[0])
        requests = [engine.submit(PROMPT, **OPTIONS) for _ in range(2)]
    assert {request.result().finish_reason for request in requests} <= {"cancelled", "length"}
