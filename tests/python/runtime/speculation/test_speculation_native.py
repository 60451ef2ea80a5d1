"""Speculation over the compiled decoder and tiny models: bits, not chances, decide whether the texts are the same."""

import json
import os
import random
import signal
import sys
import threading

import pytest
from drafts_for_tests import EagerController, TreeDraft, raising, random_guesses, same
from hypothesis import given, settings
from hypothesis import strategies as st

import tmac
from tmac.runtime.native import core
from tmac.runtime.speculation.combined import CombinedDraft
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.speculation.rows import tree_runner
from tmac.runtime.speculation.speculator import make_speculator

PROMPTS = 1000
RAISES = 4  # the number of the draft that does, of those for all prompts


@pytest.fixture(scope="module")
def path(repository):
    return repository / "tests" / "data" / "tiny_llama.gguf"


@pytest.fixture(scope="module")
def parts(path):
    from tmac.runtime.loading import load_engine_parts

    return load_engine_parts(path)


@pytest.fixture
def make_engine(path):
    engines = []

    def make(**options):
        engines.append(tmac.Engine.from_pretrained(path, num_threads=1, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def attach(engine, draft, seed=0):
    engine._passes._speculator = make_speculator(
        engine._passes.decoder, draft, EagerController(seed), engine.vocab_size, 1
    )
    return engine


def model_draft(parts, **options):
    return ModelDraft(core.Decoder(parts.model), "model:same", context_length=256, num_threads=1, **options)


def plane_drafts(engine):
    """Of an engine that was opened with "planes:3": alone, and behind the text."""
    planes = PlanesDraft(tree_runner(engine._passes.decoder, 1), 3)
    return [planes, CombinedDraft(NgramDraft(), planes)]


def test_a_thousand_prompts_greedily(make_engine, parts):
    """With random trees, a draft that is always wrong, one that equals the target, one that raises, the text, and the
    target's own planes, which write into its cache."""
    engine = make_engine(kept_positions=0, draft="planes:3")
    draw = random.Random(0)
    prompts = [
        [draw.randrange(3, 270) for _ in range(draw.randrange(1, 24))] * draw.choice([1, 1, 2]) for _ in range(PROMPTS)
    ]
    options = {"max_new_tokens": 12, "ignore_eos": True}
    expected = make_engine(kept_positions=0).generate(prompts, **options)
    truths = [prompt + text.token_ids for prompt, text in zip(prompts, expected, strict=True)]
    current = [[]]
    guess = random_guesses(current, engine.vocab_size)
    drafts = [
        TreeDraft(guess),
        TreeDraft(lambda before: [((current[0][len(before) : len(before) + 1] or [0])[0] ^ 1, 0.9)]),
        TreeDraft(guess, kind="slow"),
        CombinedDraft(NgramDraft(), model_draft(parts, kept_positions=0)),
        TreeDraft(raising),  # RAISES
        *plane_drafts(engine),
    ]
    accepted, passes = [0] * len(drafts), 0
    for number, (prompt, truth, text) in enumerate(zip(prompts, truths, expected, strict=True)):
        current[0] = truth
        attach(engine, drafts[number % len(drafts)], number)
        result = engine.generate(prompt, **options)
        same(result, text)
        assert (result.speculation.error is None) == (number % len(drafts) != RAISES)
        accepted[number % len(drafts)] += sum(result.speculation.accepted)
        passes += result.speculation.passes
    assert sum(accepted) > PROMPTS
    assert min(accepted[-2:]) > PROMPTS / len(drafts)
    assert passes + sum(accepted) == 11 * PROMPTS


VARIANTS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 2},
    {"presence_penalty": 0.7, "frequency_penalty": 0.2, "logprobs": 0},
]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_trees(engines, data):
    """For any prompt, options, cache and tree; of planes, too."""
    engine = engines[data.draw(st.sampled_from(sorted(engines)))]
    prompt = data.draw(st.lists(st.integers(3, 269), min_size=1, max_size=150))
    options = data.draw(st.sampled_from(VARIANTS)) | {
        "seed": data.draw(st.integers(0, 9)),
        "max_new_tokens": data.draw(st.integers(1, 40)),
        "ignore_eos": True,
    }
    expected = engine.generate(prompt, speculative=False, **options)
    seed = data.draw(st.integers(0, 1000))
    guess = random_guesses([prompt + expected.token_ids], engine.vocab_size, seed)
    attach(engine, data.draw(st.sampled_from([TreeDraft(guess), *plane_drafts(engine)])), seed)
    result = engine.generate(prompt, **options)
    same(result, expected)
    assert result.speculation is None or result.speculation.error is None
    same(engine.generate(prompt, speculative=False, **options), expected)  # behind the rows that are kept


@pytest.fixture(scope="module")
def engines(path):
    made = {
        cache: tmac.Engine.from_pretrained(path, num_threads=1, cache_type=cache, draft="planes:3")
        for cache in ("f32", "f16", "int8")
    }
    yield made
    for engine in made.values():
        engine.close()


def test_a_model_that_equals_the_target_is_always_right(make_engine, parts):
    engine = make_engine()
    options = {"max_new_tokens": 60, "ignore_eos": True}
    prompt = list(range(3, 60))
    expected = engine.generate(prompt, **options)
    attach(engine, model_draft(parts))
    result = engine.generate(prompt, **options)
    same(result, expected)
    stats = result.speculation
    chain = stats.accepted[0] / stats.drafted[0]
    assert stats.tokens > 1.5 * stats.passes
    assert chain > 0.3  # the first of up to three guesses


def test_chat_turns_use_what_the_draft_has_evaluated(make_engine, parts):
    engine = make_engine()
    draft = model_draft(parts)
    attach(engine, draft)
    prompt = list(range(3, 60))
    first = engine.generate(prompt, max_new_tokens=30, ignore_eos=True)
    longer = [*prompt, *first.token_ids, 5, 6, 7]
    seq, shared = draft.create(longer)
    draft.decoder.release(seq)
    assert shared >= len(prompt) + 20
    same(engine.generate(longer, max_new_tokens=10), engine.generate(longer, max_new_tokens=10, speculative=False))


def test_a_full_cache(make_engine, parts):
    options = {"max_new_tokens": None, "ignore_eos": True}
    prompt = list(range(3, 50))
    expected = make_engine(max_positions=128).generate(prompt, **options)
    assert len(expected.token_ids) < 100
    for draft in (NgramDraft(), model_draft(parts)):
        same(attach(make_engine(max_positions=128), draft).generate(prompt, **options), expected)
    for number in range(2):
        engine = make_engine(max_positions=128, draft="planes:3")
        same(attach(engine, plane_drafts(engine)[number]).generate(prompt, **options), expected)


@pytest.mark.parametrize("name", ["ngram", "model:PATH", "ngram+model:PATH", "auto"])
def test_drafts_by_their_names(make_engine, path, name):
    prompt = [5, 6, 7, 8] * 10
    expected = make_engine().generate(prompt, max_new_tokens=80, ignore_eos=True)
    engine = make_engine(draft=name.replace("PATH", str(path)))
    result = engine.generate(prompt, max_new_tokens=80, ignore_eos=True)
    same(result, expected)
    stats = result.speculation.to_dict()
    assert json.loads(json.dumps(stats)) == stats
    assert stats["error"] is None
    assert stats["tokens"] == 79


def test_no_draft(make_engine):
    assert make_engine(draft="none").generate([5, 6], max_new_tokens=2).speculation is None


def test_a_draft_that_does_not_fit(make_engine, tmp_path):
    with pytest.raises(ValueError, match="draft: expected"):
        make_engine(draft="bigram")
    with pytest.raises((ValueError, OSError), match="nowhere"):
        make_engine(draft=f"model:{tmp_path / 'nowhere'}")


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_ctrl_c_leaves_the_engine_usable(make_engine, parts):
    engine = attach(make_engine(), CombinedDraft(NgramDraft(), model_draft(parts)))
    prompt, options = [5, 6, 7] * 20, {"max_new_tokens": 60, "ignore_eos": True, "temperature": 1.0}
    expected = engine.generate(prompt, speculative=False, **options)
    for _ in range(4):
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            generate_without_end(engine, prompt, options)
        same(engine.generate(prompt, **options), expected)


def generate_without_end(engine, prompt, options):
    while True:
        engine.generate(prompt, **options)


def test_speculated_and_plain_texts_at_once(make_engine):
    prompts = [[5, 6, 7] * 12, list(range(10, 40)), [9] * 40]
    options = {"max_new_tokens": 40, "ignore_eos": True}
    expected = make_engine().generate(prompts, **options)
    engine = attach(make_engine(), NgramDraft())
    for result, text in zip(engine.generate(prompts, **options), expected, strict=True):
        same(result, text)
    requests = [engine.submit(prompt, **options) for prompt in prompts]
    for request, text in zip(requests, expected, strict=True):
        same(request.result(), text)


def test_a_text_that_shifts(make_engine, parts):
    options = {"max_new_tokens": 90, "ignore_eos": True, "context_shift": True, "n_keep": 3}
    expected = make_engine(context_length=48).generate([5, 6, 7], **options)
    for draft in (NgramDraft(), model_draft(parts)):
        same(attach(make_engine(context_length=48), draft).generate([5, 6, 7], **options), expected)


@pytest.mark.parametrize("name", ["planes:3", "ngram+planes:3"])
def test_planes_of_the_target(make_engine, name):
    prompt = list(range(3, 60))
    options = {"max_new_tokens": 60, "ignore_eos": True, "temperature": 0.5}
    expected = make_engine().generate(prompt, **options)
    engine = make_engine(draft=name)
    same(engine.generate(prompt, **options), expected)  # as it is worth it
    engine._passes._speculator.controller = EagerController()
    result = engine.generate(prompt, **options)
    same(result, expected)
    stats = result.speculation
    assert stats.error is None
    assert stats.draft_passes > 10
    assert sum(stats.accepted) > 5


def test_planes_that_the_target_has_not(make_engine):
    with pytest.raises(ValueError, match="planes"):
        make_engine(draft="planes:7")
