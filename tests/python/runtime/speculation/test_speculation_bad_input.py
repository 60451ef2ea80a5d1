"""What must not go wrong with a draft, over the compiled decoder, in memory and under a limit."""

import shutil
import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from drafts_for_tests import EagerController
from runtime_models import SIZES, save_low, save_words
from streamed import open_streamed, replaced_descriptor, streaming

import tmac
from tmac.runtime.native import is_cache_full

PROMPT = [5, 9, 33, 71, 12, 6, 7, 8, 44, 3, 5, 9, 33, 71, 12, 6]
OPTIONS = {"max_new_tokens": 40, "ignore_eos": True}
DRAFTS = ["ngram", "planes:4", "ngram+planes:4", "model:PATH"]

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
every_draft = pytest.mark.parametrize("draft", DRAFTS)
limited_or_not = pytest.mark.parametrize("limited", [False, True], ids=["in memory", "limited"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_low(tmp_path_factory.mktemp("model"), bits=8, hidden_size=128, intermediate_size=256)
    save_words(folder, [f"t{token}" for token in range(SIZES["vocab_size"])])
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint):
    with tmac.Engine.from_pretrained(checkpoint, num_threads=1) as engine:
        return engine.generate(PROMPT, **OPTIONS).token_ids


@pytest.fixture
def opened(checkpoint, tmp_path_factory, monkeypatch):
    """`opened(draft, limited)`: an engine that always speculates."""
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "packed_for_bad_input"))
    engines = []

    def make(draft, limited, path=checkpoint, **options):
        options = {"draft": draft and draft.replace("PATH", str(checkpoint)), "num_threads": 1, **options}
        streaming(monkeypatch, planes=4 if draft and "planes" in draft else None)
        engine = open_streamed(path, **options) if limited else tmac.Engine.from_pretrained(path, **options)
        engines.append(engine)
        if draft:
            engine._passes._speculator.controller = EagerController()
        return engine

    yield make
    for engine in engines:
        engine.close()


@limited_or_not
def test_another_vocabulary(checkpoint, opened, limited, tmp_path):
    other, tokens = tmp_path / "other", [f"t{token}" for token in range(96)]
    shutil.copytree(checkpoint, other)
    for changed, message in (
        ([*tokens[:7], "x", *tokens[8:]], "token 7 is 't7' there and 'x' in the draft"),
        (tokens[:90], "token 90 is 't90' there and missing in the draft"),
    ):
        save_words(other, changed)
        with pytest.raises(ValueError, match=message) as error:
            opened(f"ngram+model:{other}", limited)
        assert f"model:{other}" in str(error.value)
    (other / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="expected the draft to have a tokenizer"):
        opened(f"model:{other}", limited)


@limited_or_not
@pytest.mark.parametrize("draft", DRAFTS[2:])
def test_an_empty_prompt(opened, expected, draft, limited):
    engine = opened(draft, limited)
    for empty in ([], "", np.empty(0, np.int32), [PROMPT, []]):
        with pytest.raises(ValueError, match="prompt: expected at least one token, found none"):
            engine.generate(empty, **OPTIONS)
        with pytest.raises((TypeError, ValueError), match="prompt"):
            engine.submit(empty, **OPTIONS)
    assert engine.generate(PROMPT, **OPTIONS).token_ids == expected


@pytest.fixture(scope="module")
def ending(checkpoint):
    """Prompts, what follows them, and the place of a token that is not there before: the latest there is."""
    prompts = [[each, *PROMPT] for each in range(3, 43)]
    with tmac.Engine.from_pretrained(checkpoint, num_threads=1) as engine:
        texts = [text.token_ids for text in engine.generate(prompts, **OPTIONS)]
    places = [max(text.index(token) for token in text[:-5]) for text in texts]
    found = sorted(zip(prompts, texts, places, strict=True), key=lambda each: each[2])[-8:]
    assert all(place > 5 for _, _, place in found)
    return found


@limited_or_not
@pytest.mark.parametrize("draft", DRAFTS[1:])
def test_end_of_text_inside_a_tree(opened, ending, draft, limited):
    """A token that the model is known to write ends its texts, and the draft guesses what would follow."""
    engine, trees = opened(draft, limited), []
    run, model = engine._passes._speculator._run, engine._model

    def recorded(seq, tokens, parents, *, draft, **options):
        if not draft:
            trees.append((tokens.tolist(), parents.tolist()))
        return run(seq, tokens, parents, draft=draft, **options)

    engine._passes._speculator._run = recorded
    inside = 0
    for prompt, text, place in ending:
        end = text[place]
        engine._model = replace(model, eos_ids=frozenset([end]))
        result = engine.generate(prompt, max_new_tokens=40)
        engine._model = model
        assert result.speculation.error is None
        assert result.finish_reason == "stop"
        assert result.token_ids == text[: place + 1]
        if result.speculation.budgets[-1]:
            tokens, parents = trees[-1]
            inside += any(tokens[parent] == end for parent in parents[1:])
        assert engine.generate(prompt, **OPTIONS).token_ids == text  # from what is kept of it
    assert inside


CACHE, CONTEXT = {"max_positions": 64}, {"context_length": 50}
FULL = [*product(DRAFTS, [False], [CACHE, CONTEXT]), *product(DRAFTS[1:], [True], [CACHE])]


@pytest.mark.parametrize(("draft", "limited", "size"), FULL)
def test_a_context_that_is_full_inside_a_tree(opened, draft, limited, size):
    options = {"max_new_tokens": None, "ignore_eos": True}
    wanted = opened(None, limited=False, **size).generate(PROMPT, **options)
    assert wanted.finish_reason == "length"
    assert len(wanted.token_ids) < 120
    engine, full = opened(draft, limited, **size), []
    run = engine._passes._speculator._run

    def counted(*args, **options):
        try:
            return run(*args, **options)
        except RuntimeError as error:
            full.append(is_cache_full(error))
            raise

    engine._passes._speculator._run = counted
    for seed in range(2):
        engine._passes._speculator.controller = EagerController(100 * seed)
        result = engine.generate(PROMPT, **options)
        assert result.token_ids == wanted.token_ids
        assert result.finish_reason == "length"
        assert result.speculation.error is None
        engine.drop_prompts()
    assert all(full)
    assert bool(full) == ("max_positions" in size)


@linux
@every_draft
def test_a_read_that_fails_in_mid_text(opened, expected, draft):
    at_once = draft in DRAFTS[:2]
    other, message = ("/", "Is a directory") if at_once else ("/proc/self/mem", "Input/output error")
    engine = opened(draft, limited=True)
    path, found = engine.streamed.path, []
    stream = engine.generate(PROMPT, stream=True, **OPTIONS)

    def take(least):
        for chunk in stream:
            found.extend(chunk.token_ids)
            if len(found) >= least:
                break

    take(5)
    with replaced_descriptor(path, other), pytest.raises(RuntimeError, match=message) as error:
        take(100)
    assert str(path) in str(error.value)
    assert found == expected[: len(found)]
    assert 5 <= len(found) < len(expected)
    for _ in range(2):  # the disk is there again
        assert engine.generate(PROMPT, **OPTIONS).token_ids == expected


@every_draft
def test_a_disk_that_becomes_slow_in_mid_text(opened, expected, draft):
    engine = opened(draft, limited=True)
    found, last = [], None
    for chunk in engine.generate(PROMPT, stream=True, **OPTIONS):
        found.extend(chunk.token_ids)
        if len(found) == 6:
            engine.streamed.slow_down(20 * engine.streamed.plan.streamed)
        if len(found) == 30:
            engine.streamed.slow_down(0)
        last = chunk
    assert found == expected
    stats = last.speculation
    assert stats.error is None
    assert stats.io_seconds > 0.05  # of one pass at that rate
