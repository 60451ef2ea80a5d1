"""A draft that guesses on while a pass of the target runs: the text is the same, and nothing outlives a pass."""

import os
import signal
import sys
import threading
import time

import pytest
from drafts_for_tests import CONTEXT, EagerController, TreeDraft, paced, plain, random_guesses, same
from hypothesis import given, settings
from hypothesis import strategies as st

from tmac.runtime.speculation.combined import CombinedDraft
from tmac.runtime.speculation.grow import Growth
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.pipeline import SecondThread
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.speculation.rows import tree_runner
from tmac.runtime.speculation.speculator import make_speculator
from tmac.runtime.speculation.tree import TokenTree

PROMPT = [7, 8, 9, 7, 8, 9, 7]
OPTIONS = {"max_new_tokens": 40, "temperature": 1.0, "ignore_eos": True}


def pipelined(engine, draft, seed=0, steps=3):
    """The engine with a draft that makes so many steps, or more, beside each pass of the target."""
    speculator = make_speculator(engine.decoder, draft, EagerController(seed), engine.vocab_size, 0, pipeline=True)
    assert speculator.pipeline
    second = paced(speculator, steps)

    def wait(phase, rows):
        if phase == "tree":
            second.wait()

    engine.decoder.on_pass, engine._passes._speculator = wait, speculator
    return engine


def model_of(engine, context=CONTEXT, **options):
    """The target's own model, as another one: it is always right where the text is greedy."""
    other = type(engine.decoder)(engine.decoder.vocab, temperature=engine.decoder.temperature, **options)
    return ModelDraft(other, "model:other", context_length=context)


def drafts(engine, truth, seed):
    """Every kind of draft that may go on in a thread."""
    vocab, main = engine.vocab_size, threading.current_thread()

    def failing(before):
        if threading.current_thread() is not main:
            raise ArithmeticError("a draft that fails ahead")
        return [(1, 0.9)]

    yield TreeDraft(random_guesses([truth], vocab, seed), kind="slow")
    yield TreeDraft(lambda before: [(truth[len(before)], 1.0)] if len(before) < len(truth) else [], kind="slow")
    yield TreeDraft(lambda before: [((sum(before) + 1) % vocab, 0.9), (0, 0.9)], kind="slow")
    yield TreeDraft(failing, kind="slow")
    yield model_of(engine)
    yield model_of(engine, context=40)
    yield model_of(engine, max_positions=44)
    yield model_of(engine, window=3)
    yield CombinedDraft(NgramDraft(), model_of(engine))
    yield CombinedDraft(TreeDraft(random_guesses([truth], vocab, seed)), model_of(engine))


DRAFTS = range(10)
VARIANTS = {
    "greedy": {"max_new_tokens": 50},
    "sampled": {**OPTIONS, "top_k": 20, "logprobs": 2},
    "penalties": {**OPTIONS, "repetition_penalty": 1.3, "presence_penalty": 0.5},
    "two tokens": {"max_new_tokens": 2},
    "to the end of the context": {**OPTIONS, "max_new_tokens": None},
    "shifted": {"max_new_tokens": 90, "context_shift": True, "ignore_eos": True},
}


@pytest.mark.parametrize("number", DRAFTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_text_is_the_plain_one(make_engine, variant, number):
    options = VARIANTS[variant]
    expected = plain(make_engine, PROMPT, **options)
    engine = make_engine(context_length=CONTEXT)
    draft = list(drafts(engine, PROMPT + expected.token_ids, number))[number]
    same(pipelined(engine, draft, number).generate(PROMPT, **options), expected)


@pytest.mark.parametrize("number", DRAFTS)
def test_end_of_text_inside_a_tree_and_a_full_cache(make_engine, number, tokenizer):
    ending = {"logit_bias": {tokenizer.id("<eos>"): 22.0}, "temperature": 8.0, "max_new_tokens": 60}
    for options, engine_options in ((ending, {}), ({"max_new_tokens": 60, "ignore_eos": True}, {"max_positions": 40})):
        expected = make_engine(context_length=CONTEXT, **engine_options).generate(PROMPT, **options)
        engine = make_engine(context_length=CONTEXT, **engine_options)
        draft = list(drafts(engine, PROMPT + expected.token_ids, number))[number]
        same(pipelined(engine, draft, number).generate(PROMPT, **options), expected)


def test_what_is_right_is_there_already(make_engine):
    options = {"max_new_tokens": 60, "ignore_eos": True}
    expected = plain(make_engine, PROMPT, **options)
    truth, waited = PROMPT + expected.token_ids, {}
    for pipeline in (True, False):
        for name in ("tree", "model"):
            engine = make_engine(context_length=CONTEXT)
            right = TreeDraft(lambda before: [(truth[len(before)], 1.0)] if len(before) < len(truth) else [], "slow")
            pipelined(engine, right if name == "tree" else model_of(engine), steps=12)
            engine._passes._speculator.pipeline = pipeline
            result = engine.generate(PROMPT, **options)
            same(result, expected)
            stats = result.speculation.to_dict()
            assert stats["error"] is None
            assert stats["tokens_per_pass"] > 2
            waited[name, pipeline] = stats["draft_passes"] / stats["tokens"]
            assert (stats["ahead_passes"] > 0) == (stats["ahead_kept"] > 0) == (stats["ahead_seconds"] > 0) == pipeline
            assert stats["ahead_kept"] <= stats["ahead_passes"]
    for name in ("tree", "model"):
        assert waited[name, True] < 0.7 * waited[name, False]


def test_a_model_that_goes_on_evaluates_no_token_twice(make_engine, monkeypatch):
    monkeypatch.setattr("tmac.runtime.speculation.rows.MOST_CARRIED", 1000)
    engine = make_engine(context_length=CONTEXT)
    draft = model_of(engine)
    result = pipelined(engine, draft, steps=6).generate(PROMPT, max_new_tokens=50, ignore_eos=True)
    stats = result.speculation
    assert stats.ahead_kept > 10
    trees = [rows for phase, (rows,) in draft.decoder.passes if phase == "tree"]
    assert len(trees) == stats.draft_passes + stats.ahead_passes
    again = sum(sum(rows) for phase, rows in draft.decoder.passes if phase == "decode") + sum(trees) - len(trees)
    assert again <= stats.passes


def test_nothing_that_is_right_keeps_nothing(make_engine):
    expected = plain(make_engine, PROMPT, **OPTIONS)
    engine = make_engine(context_length=CONTEXT)
    wrong = TreeDraft(lambda before: [((sum(before) + 1) % engine.vocab_size, 0.9)], kind="slow")
    result = pipelined(engine, wrong).generate(PROMPT, **OPTIONS)
    same(result, expected)
    stats = result.speculation
    assert stats.ahead_passes > stats.ahead_kept == 0


def test_a_draft_that_fails_ahead_is_left_alone(make_engine):
    expected = plain(make_engine, PROMPT, **OPTIONS)
    engine = make_engine(context_length=CONTEXT)
    draft = list(drafts(engine, PROMPT, 0))[3]
    result = pipelined(engine, draft).generate(PROMPT, **OPTIONS)
    same(result, expected)
    assert result.speculation.error == "ArithmeticError: a draft that fails ahead"
    assert (draft.opened, draft.closed) == (1, 1)
    same(engine.generate(PROMPT, **OPTIONS), expected)


def test_no_step_is_begun_that_would_probably_end_after_the_pass(make_engine, monkeypatch):
    """Steps of a second beside passes that are known to take three and a half."""
    expected = plain(make_engine, PROMPT, **OPTIONS)
    engine = make_engine(context_length=CONTEXT)
    truth, now, made, ahead = PROMPT + expected.token_ids, [0.0], [], Growth.ahead

    def guess(before):
        now[0] += 1.0
        return [(truth[len(before)], 0.9)] if len(before) < len(truth) else []

    def counted(growth, stopped):
        ahead(growth, stopped)
        made.append(len(growth.ahead_nodes))

    monkeypatch.setattr(Growth, "ahead", counted)
    pipelined(engine, TreeDraft(guess, kind="slow"), steps=100)  # the passes wait until the clock ends the steps
    speculator = engine._passes._speculator
    passes, speculator._clock = speculator.controller.passes, lambda: now[0]
    monkeypatch.setattr(passes, "of", lambda rows: 3.5)
    result = engine.generate(PROMPT, **OPTIONS)
    same(result, expected)
    assert max(made) == 3
    assert result.speculation.ahead_passes == sum(made) > 6


def test_trees_that_are_carried_on_for_long(make_engine):
    """More rows than a decoder is to keep behind a sequence."""
    from tmac.runtime.speculation import rows

    options = {"max_new_tokens": 60, "ignore_eos": True}
    expected = plain(make_engine, PROMPT, **options)
    for most in (0, 5, 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rows, "MOST_CARRIED", most)
            engine = make_engine(context_length=CONTEXT)
            result = pipelined(engine, model_of(engine), steps=5).generate(PROMPT, **options)
        same(result, expected)
        assert result.speculation.ahead_kept > 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
@pytest.mark.parametrize("number", [0, 4, 8])
def test_ctrl_c_in_a_pass_beside_which_the_draft_goes_on(make_engine, number):
    expected = plain(make_engine, PROMPT, **OPTIONS)
    engine = make_engine(context_length=CONTEXT)
    draft = list(drafts(engine, PROMPT + expected.token_ids, 1))[number]
    pipelined(engine, draft)
    wait = engine.decoder.on_pass
    for count in (1, 4):
        left = [count]

        def interrupt(phase, rows, left=left):
            wait(phase, rows)
            left[0] -= phase == "tree"
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGINT)

        engine.decoder.on_pass = interrupt
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPT, **OPTIONS)
        engine.decoder.on_pass = wait
        same(engine.generate(PROMPT, **OPTIONS), expected)


def test_an_error_in_the_pass_of_the_target(make_engine):
    expected = plain(make_engine, PROMPT, **OPTIONS)
    engine = pipelined(make_engine(context_length=CONTEXT), model_of(make_engine()))
    wait = engine.decoder.on_pass

    def fail(phase, rows):
        wait(phase, rows)
        if phase == "tree":
            raise OSError("the disk is gone")

    engine.decoder.on_pass = fail
    with pytest.raises(OSError, match="gone"):
        engine.generate(PROMPT, **OPTIONS)
    engine.decoder.on_pass = wait
    same(engine.generate(PROMPT, **OPTIONS), expected)


def test_texts_one_after_the_other_together_and_closed(make_engine):
    prompts = [PROMPT, [5, 6] * 20, [*PROMPT, 3]]
    expected = [plain(make_engine, prompt, **OPTIONS) for prompt in prompts]
    engine = make_engine(context_length=CONTEXT)
    draft = model_of(engine)
    pipelined(engine, draft)
    for prompt, text in zip(prompts, expected, strict=True):
        same(engine.generate(prompt, **OPTIONS), text)
    for result, text in zip(engine.generate(prompts, **OPTIONS), expected, strict=True):
        same(result, text)
    requests = [engine.submit(prompt, **OPTIONS) for prompt in prompts]
    for request, text in zip(requests, expected, strict=True):
        same(request.result(), text)
    assert any(thread.name.startswith("tmac-draft") for thread in threading.enumerate())
    request = engine.submit(PROMPT, **OPTIONS)
    engine.close()
    assert request.result().finish_reason in ("cancelled", "length")
    assert not draft.decoder.sequences


def test_a_draft_that_shares_the_decoder_never_goes_on(make_engine):
    engine = make_engine(context_length=CONTEXT)
    for draft in (PlanesDraft(tree_runner(engine.decoder), 3), NgramDraft()):
        made = make_speculator(engine.decoder, draft, EagerController(), engine.vocab_size, 0, pipeline=True)
        assert not made.pipeline
        both = CombinedDraft(NgramDraft(), draft)
        assert not make_speculator(engine.decoder, both, None, engine.vocab_size, 0, pipeline=True).pipeline


def test_work_ends_before_the_block():
    second, seen = SecondThread(), []

    def work(stopped):
        while not stopped():
            time.sleep(0.001)
        seen.append(threading.current_thread())

    for error in (None, KeyboardInterrupt, OSError):
        try:
            with second.running(work) as beside:
                if error:
                    raise error
        except (KeyboardInterrupt, OSError) as found:
            assert type(found) is error  # noqa: PT017
        assert beside.error is None
        assert beside.seconds > 0
    assert len(set(seen)) == 1
    assert len(seen) == 3
    with second.running(lambda stopped: {}["nothing"]) as beside:
        pass
    assert isinstance(beside.error, KeyError)
    with second.running(None) as beside:
        pass
    second.close()
    second.close()
    assert not seen[0].is_alive()
    with second.running(work):
        pass
    assert len(seen) == 4
    second.close()


def test_a_subtree():
    tree = TokenTree(1)
    a, b = tree.add(0, 2, "k", 0.5, 0.4), tree.add(0, 3, "k", 0.5, 0.3)
    c = tree.add(b, 4, "m", 0.25, 0.2)
    tree.add(a, 5, "k", 0.5, 0.4)
    d, e = tree.add(c, 6, "k", 0.5, 0.4), tree.add(b, 7, "k", 0.75, 0.4)
    rest, origin = tree.subtree(b, lambda kind, confidence: confidence / 2)
    assert origin == [b, c, d, e]
    assert (rest.tokens, rest.parents, rest.depths) == ([3, 4, 6, 7], [-1, 0, 1, 0], [0, 1, 2, 1])
    assert rest.chances == [1.0, 0.125, 0.125 * 0.25, 0.375]
    assert (rest.kinds[1], rest.confidences[1]) == ("m", 0.25)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_trees_for_random_prompts(data):
    make = MAKE[0]
    prompt = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=40))
    options = {
        "temperature": data.draw(st.sampled_from([0.0, 0.5, 2.0])),
        "seed": data.draw(st.integers(0, 5)),
        "max_new_tokens": data.draw(st.sampled_from([17, None])),
        "context_shift": False,
        "ignore_eos": data.draw(st.booleans()),
    }
    expected = make(context_length=CONTEXT).generate(prompt, **options)
    engine, seed = make(context_length=CONTEXT), data.draw(st.integers(0, 1000))
    draft = list(drafts(engine, prompt + expected.token_ids, seed))[data.draw(st.sampled_from(list(DRAFTS)))]
    same(pipelined(engine, draft, seed, steps=seed % 4).generate(prompt, **options), expected)


MAKE = []


@pytest.fixture(autouse=True)
def _make(make_engine):
    MAKE[:] = [make_engine]
