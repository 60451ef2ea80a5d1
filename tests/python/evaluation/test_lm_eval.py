"""The adapter for lm-eval, over the real package where it is installed and else over what it uses of that."""

import importlib
import importlib.util
import math
import sys
from types import SimpleNamespace

import fake_lm_eval
import numpy as np
import pytest
from text_model import TEXT, save_model

REAL = importlib.util.find_spec("lm_eval") is not None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), low_bit=True)


@pytest.fixture
def adapter(monkeypatch):
    """The module, with lm-eval or its stand-in below it."""
    monkeypatch.setenv("TMAC_TUNING", "off")
    if not REAL:
        fake_lm_eval.install(monkeypatch)
    yield importlib.import_module("tmac.evaluation.lm_eval_model")
    if not REAL:
        sys.modules.pop("tmac.evaluation.lm_eval_model", None)


@pytest.fixture
def model(adapter, folder):
    made = adapter.EngineLM(str(folder), max_length=40, cache_type="f32", batch_size=1, device="cpu", progress=False)
    yield made
    made.engine.close()


def asked(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def scored(model, ids, count):
    """(log-probability, whether greedy) of the last `count` of `ids`, from the engine's logits."""
    rows = log_softmax(model.engine.logits(ids[:-1]))[-count:]
    tail = np.array(ids[-count:])
    return rows[np.arange(count), tail].sum(), bool((rows.argmax(1) == tail).all())


def test_continuations_have_the_engines_probabilities(model):
    pairs = [
        ("the quick", " fox"),
        ("the quick", " fog"),
        ("the quick ", "fox"),
        ("", "the"),
        (" ", "the"),
        ("a", "bc"),
    ]
    found = model.loglikelihood(asked(*pairs), disable_tqdm=True)
    prefix = model.prefix_token_id
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        ids = model.tok_encode(context + continuation)
        count = len(ids) - len(model.tok_encode(context.rstrip()))
        wanted = scored(model, ids if context.strip() else [prefix, *ids], count)
        assert value == pytest.approx(wanted[0], abs=1e-4)
        assert greedy == wanted[1]
    assert found[0] == found[2]


def test_the_likeliest_continuation_is_greedy(model):
    ids = model.tok_encode("the quick")
    best = int(model.engine.logits(ids)[-1].argmax())
    found = model._score([(ids, [best]), (ids, [(best + 1) % 200])], "", True)
    assert [greedy for _, greedy in found] == [True, False]


def test_texts_that_differ_in_the_last_token_are_read_once(model, monkeypatch):
    read = []
    logits = model._scorer.logits
    monkeypatch.setattr(model._scorer, "logits", lambda ids: read.append(tuple(ids)) or logits(ids))
    model.loglikelihood(asked(("pick", " A"), ("pick", " B"), ("pick", " C")), disable_tqdm=True)
    assert len(read) == 1
    assert bytes(model.engine.tokenizer.decode(list(read[0])), "ascii") == b"pick "


def test_a_context_that_is_too_long_loses_its_beginning(model):
    found = model.loglikelihood(asked((TEXT, " end")), disable_tqdm=True)
    ids = model.tok_encode(TEXT + " end")[-41:]
    count = len(model.tok_encode(TEXT + " end")) - len(model.tok_encode(TEXT.rstrip()))
    assert found[0][0] == pytest.approx(scored(model, ids, count)[0], abs=1e-4)
    with pytest.raises(ValueError, match="expected 1 to 40 tokens to score, found"):
        model.loglikelihood(asked(("a", TEXT)), disable_tqdm=True)
    with pytest.raises(ValueError, match="found 0"):
        model.loglikelihood(asked(("a", "")), disable_tqdm=True)


@pytest.mark.parametrize(("tokens", "length"), [(1, 4), (4, 4), (10, 4), (11, 4), (3, 100), (0, 4), (5, 1)])
def test_windows_predict_every_token_once(adapter, tokens, length):
    ids = list(range(tokens))
    windows = list(adapter.rolling_windows(ids, 99, length))
    assert [token for _, predicted in windows for token in predicted] == ids
    for place, (context, predicted) in enumerate(windows):
        read = [*context, *predicted][:-1]
        assert len(read) == (length if place else min(length, tokens))
        assert read == [99, *ids][predicted[-1] + 1 - len(read) : predicted[-1] + 1]
    if REAL:
        utils = importlib.import_module("lm_eval.utils")
        theirs = utils.get_rolling_token_windows(ids, 99, length, 1)
        assert windows == [utils.make_disjoint_window(each) for each in theirs]


def test_a_text_is_the_sum_of_its_windows(model, adapter):
    (found,) = model.loglikelihood_rolling(asked((TEXT[:90],)), disable_tqdm=True)
    ids = model.tok_encode(TEXT[:90])
    assert len(ids) > 40
    windows = adapter.rolling_windows(ids, model.prefix_token_id, 40)
    assert found == pytest.approx(sum(scored(model, [*a, *b], len(b))[0] for a, b in windows), abs=1e-3)
    assert model.loglikelihood_rolling(asked(("",)), disable_tqdm=True) == [0.0]


def test_answers_end_where_they_should(model):
    greedy = model.engine.generate(model.tok_encode("the quick"), max_new_tokens=12).text
    options = {"max_gen_toks": 12, "until": [], "do_sample": False, "temperature": 0.7}
    stop = greedy[3:5] or greedy
    requests = asked(
        ("the quick", options),
        ("the quick", {**options, "until": [stop]}),
        ("the quick", {**options, "until": stop}),
        ("the quick", {"max_gen_toks": 2}),
        (TEXT, options),
        ("", options),
    )
    found = model.generate_until(requests, disable_tqdm=True)
    assert found[0] == greedy
    assert found[1] == found[2] == greedy.partition(stop)[0]
    assert greedy.startswith(found[3])
    tail = model.tok_encode(TEXT)[-28:]
    assert found[4] == model.engine.generate(tail, max_new_tokens=12).text
    assert len(found) == 6
    with pytest.raises(ValueError, match="40 tokens do not fit into 40"):
        model.generate_until(asked(("a", {"max_gen_toks": 40})), disable_tqdm=True)


def test_texts_begin_as_the_tokenizer_says(adapter, tmp_path):
    path = save_model(tmp_path, begins=True)
    made = adapter.EngineLM(path, progress=False)
    plain = adapter.EngineLM(path, progress=False, add_bos_token=False)
    bos = made.prefix_token_id
    assert made.tok_encode("ab") == [bos, *plain.tok_encode("ab")]
    assert made.tok_encode("<s>ab") == made.tok_encode("ab")
    (found,) = made.loglikelihood(asked(("ab", "c")), disable_tqdm=True)
    assert found[0] == pytest.approx(scored(made, made.tok_encode("abc"), 1)[0], abs=1e-2)  # f16 cache
    assert math.isfinite(plain.loglikelihood(asked(("ab", "c")), disable_tqdm=True)[0][0])
    assert made.tokenizer_name == str(path).replace("/", "__")
    assert made.chat_template() == ""
    for each in (made, plain):
        each.engine.close()


def test_the_command_registers_the_model(adapter, monkeypatch, capsys):
    command = importlib.import_module("tmac.evaluation.lm_eval")
    called = []
    monkeypatch.setattr(importlib.import_module("lm_eval.__main__"), "cli_evaluate", lambda: called.append(1))
    assert command.main() == 0
    assert called == [1]
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert command.main() == 2
    assert "pip install lm-eval" in capsys.readouterr().err


@pytest.mark.skipif(not REAL, reason="needs the package lm-eval")
def test_the_name_is_known_to_lm_eval(adapter):
    registry = importlib.import_module("lm_eval.api.registry")
    assert registry.get_model("tmac") is adapter.EngineLM
