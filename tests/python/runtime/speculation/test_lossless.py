"""Whatever a draft guesses, the text is that of plain decoding: over a decoder that notices every wrong row."""

import os
import signal
import sys
import threading

import pytest
from drafts_for_tests import CONTEXT, EagerController, TreeDraft, plain, raising, random_guesses, same
from hypothesis import given, settings
from hypothesis import strategies as st

from tmac.runtime.speculation.combined import CombinedDraft
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.speculation.rows import tree_runner

PROMPT = [7, 8, 9, 7, 8, 9, 7]
LONG = [5, 6] * 30
VARIANTS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "ignore_eos": True},
    "filtered": {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 5, "ignore_eos": True},
    "penalties": {
        "temperature": 1.0,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "ignore_eos": True,
    },
    "biased": {"logit_bias": {3: 30.0, 4: 30.0}, "temperature": 4.0, "ignore_eos": True},
    "logprobs": {"logprobs": 3, "temperature": 1.0, "ignore_eos": True},
    "one token": {"max_new_tokens": 1},
    "two tokens": {"max_new_tokens": 2},
    "to the end of the context": {"max_new_tokens": None, "temperature": 1.0, "ignore_eos": True},
    "shifted": {"max_new_tokens": 90, "context_shift": True, "temperature": 1.0, "ignore_eos": True},
    "shifted greedily": {"max_new_tokens": 90, "context_shift": True, "n_keep": 0, "ignore_eos": True},
}


def drafts(decoder, prompt, expected, seed):
    """Every kind of draft, for a text that is known."""
    vocab, truth = decoder.vocab, prompt + expected.token_ids
    run = tree_runner(decoder)
    other = type(decoder)(decoder.vocab, temperature=decoder.temperature)
    model = ModelDraft(other, "model:other", context_length=CONTEXT)
    yield TreeDraft(random_guesses([truth], vocab, seed))
    yield TreeDraft(random_guesses([truth], vocab, seed), kind="slow")
    yield TreeDraft(lambda before: [(truth[len(before)], 1.0)] if len(before) < len(truth) else [])
    yield TreeDraft(lambda before: [((sum(before) + 1) % vocab, 0.9), (0, 0.9)])
    yield TreeDraft(raising)
    yield TreeDraft(raising, kind="slow")
    yield NgramDraft()
    yield PlanesDraft(run, 4)
    yield model
    yield CombinedDraft(NgramDraft(), PlanesDraft(run, 3))
    yield CombinedDraft(TreeDraft(random_guesses([truth], vocab, seed)), model)


def speculative(make_engine, draft_number, prompt, expected, *, seed=0, options=None, agreement=0.8, **engine):
    made = make_engine(context_length=CONTEXT, **engine)
    made.decoder.agreement = agreement
    draft = list(drafts(made.decoder, prompt, expected, seed))[draft_number]
    return attach(made, draft, seed).generate(prompt, **(options or {}))


def attach(engine, draft, seed=0):
    """The engine with another draft."""
    from tmac.runtime.speculation.speculator import make_speculator

    engine._passes._speculator = make_speculator(engine.decoder, draft, EagerController(seed), engine.vocab_size, 0)
    return engine


DRAFTS = range(11)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_text_is_the_plain_one(make_engine, variant, draft):
    options, prompt = VARIANTS[variant], (PROMPT, [1], LONG)[(draft + len(variant)) % 3]
    expected = plain(make_engine, prompt, **options)
    result = speculative(make_engine, draft, prompt, expected, seed=draft, options=options)
    same(result, expected)


def test_drafts_that_are_right_save_passes(make_engine):
    options = {"max_new_tokens": 60, "ignore_eos": True}
    expected = plain(make_engine, PROMPT, **options)
    passes = {}
    for number, name in ((2, "right"), (3, "wrong"), (7, "planes"), (8, "model")):
        result = speculative(make_engine, number, PROMPT, expected, options=options, agreement=1.0)
        same(result, expected)
        stats = result.speculation
        assert stats.tokens == 59  # the first one comes with the prompt
        assert stats.passes == len(stats.budgets)
        assert stats.tokens == stats.passes + sum(stats.accepted)
        assert sum(stats.drafted) == sum(stats.budgets) > 0
        assert all(right <= tried for right, tried in zip(stats.accepted, stats.drafted, strict=True))
        passes[name] = stats.passes
    assert passes["wrong"] == 59
    assert max(passes["right"], passes["planes"], passes["model"]) < 30


def test_another_model_evaluates_no_token_twice(make_engine):
    engine = make_engine(context_length=CONTEXT)
    other = type(engine.decoder)(engine.decoder.vocab)
    attach(engine, ModelDraft(other, "model:other", context_length=CONTEXT))
    result = engine.generate(PROMPT, max_new_tokens=50, ignore_eos=True)
    stats = result.speculation
    assert sum(stats.accepted) > 20
    again = sum(sum(rows) for phase, rows in other.passes if phase == "decode")
    assert again <= stats.passes  # the last token of a path that was right to its end
    assert sum(sum(rows) for phase, rows in other.passes if phase == "tree") == stats.draft_passes


def test_a_draft_that_fails_is_left_alone(make_engine):
    expected = plain(make_engine, PROMPT, max_new_tokens=20)
    result = speculative(make_engine, 4, PROMPT, expected, options={"max_new_tokens": 20})
    same(result, expected)
    assert result.speculation.error == "ArithmeticError: a draft that fails"
    assert set(result.speculation.budgets) == {0}


@pytest.mark.parametrize("draft", DRAFTS)
def test_end_of_text_and_stop_strings_inside_a_tree(make_engine, draft, tokenizer):
    end = tokenizer.id("<eos>")
    for options in (
        {"logit_bias": {end: 22.0}, "temperature": 8.0},
        {"logit_bias": {61: 22.0}, "stop": [tokenizer.decode([61])], "temperature": 8.0, "ignore_eos": True},
    ):
        texts = [plain(make_engine, PROMPT, seed=seed, max_new_tokens=60, **options) for seed in range(8)]
        seed, expected = max(
            ((seed, text) for seed, text in enumerate(texts) if text.finish_reason == "stop"),
            key=lambda pair: len(pair[1].token_ids),
        )
        assert len(expected.token_ids) > 8
        options = {**options, "seed": seed, "max_new_tokens": 60}
        same(speculative(make_engine, draft, PROMPT, expected, seed=draft, options=options), expected)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_grammar(make_engine, draft):
    pytest.importorskip("llguidance")
    options = {"regex": "[a-d]{3,40}", "temperature": 1.0, "max_new_tokens": 40}
    expected = plain(make_engine, PROMPT, **options)
    same(speculative(make_engine, draft, PROMPT, expected, seed=draft, options=options), expected)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_cache_that_is_full(make_engine, draft):
    options = {"max_new_tokens": 60, "ignore_eos": True}
    expected = make_engine(context_length=CONTEXT, max_positions=40).generate(PROMPT, **options)
    assert expected.finish_reason == "length"
    assert len(expected.token_ids) < 60
    result = speculative(make_engine, draft, PROMPT, expected, seed=draft, options=options, max_positions=40)
    same(result, expected)


@pytest.mark.parametrize("draft", DRAFTS)
def test_layers_with_windows(make_engine, draft):
    expected = plain(make_engine, LONG, temperature=1.0, ignore_eos=True, max_new_tokens=None)
    options = {"temperature": 1.0, "ignore_eos": True, "max_new_tokens": None}
    same(speculative(make_engine, draft, LONG, expected, seed=draft, options=options, window=3), expected)


@pytest.mark.parametrize("draft", [2, 6, 7, 8, 9])
def test_texts_one_after_the_other_and_together(make_engine, draft):
    options = {"temperature": 1.0, "ignore_eos": True, "max_new_tokens": 25}
    prompts = [LONG, LONG[:40], [*LONG, 9], PROMPT, LONG]
    expected = [plain(make_engine, prompt, **options) for prompt in prompts]
    engine = make_engine(context_length=CONTEXT)
    attach(engine, list(drafts(engine.decoder, prompts[0], expected[0], 0))[draft])
    for _ in range(2):
        for prompt, result in zip(prompts, expected, strict=True):
            same(engine.generate(prompt, **options), result)
        for result, other in zip(engine.generate(prompts, **options), expected, strict=True):
            same(result, other)
    plainly = engine.generate(LONG, speculative=False, **options)
    same(plainly, expected[0])
    assert plainly.speculation is None


def test_the_caches_are_empty_in_the_end(make_engine):
    engine = make_engine(context_length=CONTEXT)
    other = type(engine.decoder)(engine.decoder.vocab)
    attach(engine, CombinedDraft(NgramDraft(), ModelDraft(other, "model:other", context_length=CONTEXT)))
    for prompt in (LONG, PROMPT, [*LONG[:50], 3]):
        engine.generate(prompt, ignore_eos=True)
    assert 0 < len(other.sequences) <= 3  # texts that later ones may begin with
    assert not engine._passes._speculator._states
    engine.drop_prompts()
    assert not other.sequences
    assert not engine.decoder.sequences


def test_logits_that_are_no_numbers_end_the_text_as_without_a_draft(make_engine):
    expected = plain(make_engine, PROMPT, max_new_tokens=30, ignore_eos=True)
    engine = make_engine(context_length=CONTEXT)
    truth = PROMPT + expected.token_ids
    attach(engine, TreeDraft(random_guesses([truth], engine.vocab_size, right=1.0)))
    engine.decoder.nan_after = expected.token_ids[20]
    with pytest.raises(ValueError, match="NaN"):
        engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True)
    engine.decoder.nan_after = None
    same(engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True), expected)


@pytest.mark.parametrize("draft", [2, 6, 7, 8, 9])
def test_a_request_is_cancelled_in_its_own_callback(make_engine, draft):
    expected = plain(make_engine, PROMPT, max_new_tokens=40, ignore_eos=True)
    engine = make_engine(context_length=CONTEXT)
    attach(engine, list(drafts(engine.decoder, PROMPT, expected, 1))[draft])
    requests, taken = [], []

    def take(chunk):
        taken.extend(chunk.token_ids)
        if len(taken) >= 7:
            requests[0].cancelled = True

    with engine._scheduler.exclusive():
        requests.append(engine.submit(PROMPT, on_chunk=take, max_new_tokens=40, ignore_eos=True))
    result = requests[0].result()
    assert result.finish_reason == "cancelled"
    assert 7 <= len(result.token_ids) <= 9  # bytes of one character come together
    assert result.token_ids == expected.token_ids[: len(result.token_ids)]


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
@pytest.mark.parametrize("draft", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("place", ["on_pass", "after_pass"])
def test_ctrl_c_in_a_pass(make_engine, draft, place):
    options = {"max_new_tokens": 40, "temperature": 1.0, "ignore_eos": True}
    expected = plain(make_engine, PROMPT, **options)
    engine = make_engine(context_length=CONTEXT)
    chosen = list(drafts(engine.decoder, PROMPT, expected, 1))[draft]
    attach(engine, chosen)
    decoders = [engine.decoder]
    if isinstance(chosen, ModelDraft):
        decoders.append(chosen.decoder)
    for decoder in decoders:
        for count in (1, 3, 8):
            left = [count]

            def interrupt(phase, rows, left=left):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGINT)

            setattr(decoder, place, interrupt)
            with pytest.raises(KeyboardInterrupt):
                engine.generate(PROMPT, **options)
            setattr(decoder, place, None)
            same(engine.generate(PROMPT, **options), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
@pytest.mark.parametrize("draft", [2, 7, 8, 9])
def test_ctrl_c_while_the_main_thread_only_waits(make_engine, draft):
    """The engine's own thread goes on in mid-text, and whoever asks again gets all of it."""
    options = {"max_new_tokens": 40, "temperature": 1.0, "ignore_eos": True}
    expected = plain(make_engine, PROMPT, **options)
    engine = make_engine(context_length=CONTEXT)
    attach(engine, list(drafts(engine.decoder, PROMPT, expected, 1))[draft])
    ready, interrupted, seen = threading.Event(), threading.Event(), []

    def interrupt(chunk):
        seen.append(chunk)
        if len(seen) == 3:
            assert ready.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted.wait(60)

    request = engine.submit(PROMPT, on_chunk=interrupt, **options)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come at once
        ready.set()
        request.result()
    assert len(seen) == 3
    assert not request.done
    interrupted.set()
    same(request.result(), expected)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
@pytest.mark.parametrize("draft", [2, 7, 8, 9])
def test_streams_go_on_after_ctrl_c(make_engine, draft):
    """What was interrupted between two tokens goes on from there."""
    options = {"max_new_tokens": 40, "temperature": 1.0, "ignore_eos": True}
    expected = plain(make_engine, PROMPT, **options)
    engine = make_engine(context_length=CONTEXT)
    attach(engine, list(drafts(engine.decoder, PROMPT, expected, 1))[draft])
    stream, found = engine.generate(PROMPT, stream=True, **options), []

    def take(count):
        for chunk in stream:
            found.extend(chunk.token_ids)
            if len(found) >= count:
                signal.raise_signal(signal.SIGINT)

    for count in (5, 20):
        with pytest.raises(KeyboardInterrupt):
            take(count)
        assert count <= len(found) < 40
    take(100)
    assert found == expected.token_ids


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_trees_for_random_prompts(data):
    """As above, for prompts, options and trees of every kind."""
    make = data.draw(st.just(MAKE[0]))
    prompt = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=40))
    options = {
        "temperature": data.draw(st.sampled_from([0.0, 0.5, 2.0])),
        "seed": data.draw(st.integers(0, 5)),
        "max_new_tokens": data.draw(st.sampled_from([3, 17, None])),
        "context_shift": False,
        "ignore_eos": data.draw(st.booleans()),
    }
    expected = make(context_length=CONTEXT).generate(prompt, **options)
    engine = make(context_length=CONTEXT)
    engine.decoder.agreement = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    seed = data.draw(st.integers(0, 1000))
    draft = list(drafts(engine.decoder, prompt, expected, seed))[data.draw(st.sampled_from(list(DRAFTS)))]
    same(attach(engine, draft, seed).generate(prompt, **options), expected)


MAKE = []


@pytest.fixture(autouse=True)
def _make(make_engine):
    MAKE[:] = [make_engine]
