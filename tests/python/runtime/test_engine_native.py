"""The engine over the compiled decoder and a tiny Llama: the same texts, however they come about."""

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import tmac

OPTIONS = {"temperature": 1.0, "ignore_eos": True, "max_new_tokens": 24, "logprobs": 2}


@pytest.fixture(scope="module")
def path(repository):
    return repository / "tests" / "data" / "tiny_llama.gguf"


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    long = rng.integers(3, 270, 150).tolist()
    return [rng.integers(3, 270, size).tolist() for size in (1, 2, 15, 16, 17, 63, 64, 65, 130)] + [
        long,
        [*long[:100], 5],
    ]


@pytest.fixture
def make_engine(path):
    engines = []

    def make(**options):
        engines.append(tmac.Engine.from_pretrained(path, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(make_engine):
    return make_engine()


def summary(results):
    return [(result.token_ids, result.text, result.logprobs) for result in results]


@pytest.fixture(scope="module")
def expected(path, prompts):
    """What each prompt gives alone, on an engine of its own."""
    found = []
    for prompt in prompts:
        with tmac.Engine.from_pretrained(path) as engine:
            found.append(engine.generate(prompt, **OPTIONS))
    return summary(found)


@pytest.mark.parametrize(
    "options",
    [{}, {"chunk_size": 1}, {"chunk_size": 33}, {"num_threads": 2}, {"max_batch": 2}, {"kept_positions": 0}],
    ids=str,
)
def test_a_text_does_not_depend_on_others(make_engine, prompts, expected, options):
    engine = make_engine(**options)
    assert summary(engine.generate(prompts, **OPTIONS)) == expected
    assert summary(engine.generate(prompts, **OPTIONS)) == expected  # now from kept prompts


def test_a_full_cache_changes_no_text(make_engine, prompts, expected):
    engine = make_engine(max_positions=320)
    assert summary(engine.generate(prompts, **OPTIONS)) == expected


@pytest.mark.parametrize("cache_type", ["f32", "f16", "int8"])
def test_a_saved_prompt_has_the_bits_of_an_evaluated_one(make_engine, prompts, tmp_path, cache_type):
    prompt = prompts[-2]
    make_engine(cache_type=cache_type).save_prompt(tmp_path / "prompt", prompt[:70])
    engine = make_engine(cache_type=cache_type)
    result = engine.generate(prompt, prompt_cache=tmp_path / "prompt", **OPTIONS)
    assert result.timings.reused_tokens == 70
    assert summary([result]) == summary([make_engine(cache_type=cache_type).generate(prompt, **OPTIONS)])
    other = make_engine(cache_type="f16" if cache_type == "f32" else "f32")
    with pytest.raises(tmac.FormatError, match="by another model or with another cache_type"):
        other.generate(prompt, prompt_cache=tmp_path / "prompt")


def test_32_requests_at_once(engine, prompts, expected):
    chosen = [number % len(prompts) for number in range(32)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda number: engine.submit(prompts[number], **OPTIONS).result(), chosen))
    assert summary(found) == [expected[number] for number in chosen]


def test_evaluation_does_not_depend_on_chunks(make_engine, prompts):
    ids = prompts[-2]
    one, other = make_engine(chunk_size=512), make_engine(chunk_size=7)
    rows = one.logits(ids)
    assert rows.shape == (len(ids), one.vocab_size)
    np.testing.assert_array_equal(rows, other.logits(ids))
    exact = rows.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1, keepdims=True)) + exact.max(-1, keepdims=True)
    chosen = exact[np.arange(len(ids) - 1), ids[1:]]
    found = other.log_probabilities(ids)
    # f32 logits below 64: half a step of the result and of the logarithm's own rounding
    np.testing.assert_allclose(found, chosen, rtol=0, atol=8 * np.spacing(np.float32(np.abs(rows).max() + 8)))


def test_a_shifted_context_is_a_new_prompt(make_engine, prompts):
    options = {"temperature": 0, "ignore_eos": True, "logprobs": None}
    prompt = prompts[2]
    result = make_engine(context_length=32).generate(prompt, max_new_tokens=40, context_shift=True, n_keep=3, **options)
    tokens = prompt + result.token_ids[: 32 - len(prompt)]
    shifted = tokens[:3] + tokens[-14:]
    fresh = make_engine(context_length=32).generate(shifted, max_new_tokens=15, **options)
    assert fresh.token_ids == result.token_ids[32 - len(prompt) :][:15]


def generate_without_end(engine, prompts):
    while True:
        engine.generate(prompts, **OPTIONS)


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_ctrl_c_leaves_the_engine_usable(engine, prompts, expected):
    for _ in range(5):
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            generate_without_end(engine, prompts)
        assert summary(engine.generate(prompts[-3:], **OPTIONS)) == expected[-3:]


def test_engines_come_and_go(path, prompts):
    before = threading.active_count()
    for _ in range(20):
        engine = tmac.Engine.from_pretrained(path)
        engine.submit(prompts[0], **OPTIONS).result()
        del engine
    end = time.monotonic() + 10
    while threading.active_count() > before:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sampling_arguments_reach_the_core(engine):
    with pytest.raises(ValueError, match="logit_bias"):
        engine.generate([5], logit_bias={270: 1.0})
    assert set(engine.generate([5], logit_bias={7: 1e4}, **OPTIONS).token_ids) == {7}
    assert len(set(engine.generate([5], **{**OPTIONS, "repetition_penalty": 1e4, "temperature": 0}).token_ids)) == 24
    texts = {engine.generate([5], seed=seed, **OPTIONS).text for seed in range(4)}
    assert len(texts) == 4
