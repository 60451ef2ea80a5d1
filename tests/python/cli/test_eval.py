"""`tmac eval` on a tiny model with a tokenizer: both paths, a reference, and what the user can put right."""

import json
import sys

import numpy as np
import pytest
from text_model import TEXT, save_model

import tmac
from tmac import cli


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(float model, its low-bit form that rounds no activation), with a tokenizer that puts no token before a text."""
    base = tmp_path_factory.mktemp("models")
    return save_model(base / "float"), save_model(base / "low", low_bit=True)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [
        {"context": "the quick brown", "choices": ["fox", "dog", "lazy"], "answer": place % 3} for place in range(6)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TMAC_TUNING", "off")


@pytest.fixture
def measured(capsys):
    """`measured(path, ...)`: the JSON that `tmac eval` prints."""

    def run(*arguments):
        assert cli.main(["eval", *map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def test_both_paths_measure_the_same(folders, text, measured):
    ways = {
        way: measured(folders[1], "--path", way, "--text", text, "--window", 32) for way in ("engine", "hf", "auto")
    }
    assert ways["engine"] == ways["auto"]
    assert ways["auto"]["way"] == "engine"
    assert ways["hf"]["way"] == "hf"
    assert ways["hf"]["text"]["tokens"] == ways["engine"]["text"]["tokens"]
    assert ways["hf"]["text"]["perplexity"] == pytest.approx(
        ways["engine"]["text"]["perplexity"], rel=1e-3
    )  # f16 cache


@pytest.mark.parametrize("kl", [[], ["--kl"]])
def test_a_model_beside_the_float_one(folders, text, questions, measured, kl):
    sources = ("--text", text, "--choices", questions, "--window", 32, "--max-tokens", 200)
    found = measured(folders[1], "--reference", folders[0], *sources, *kl)
    result = found["text"]
    assert result["tokens"] == 193
    assert result["ratio"]["ratio"] == pytest.approx(result["perplexity"] / result["reference_perplexity"])
    assert result["ratio"]["lower"] < result["ratio"]["ratio"] < result["ratio"]["upper"]
    assert (result["mean_kl"] is None) == (not kl)
    if kl:
        assert 0 < result["mean_kl"] < 1
        assert 0.5 < result["top1"] <= 1
    assert found["choices"]["questions"] == 6
    assert found["choices"]["test"]["p_value"] <= 1


def test_a_low_bit_reference_is_turned_into_floats(folders, text, measured):
    found = measured(folders[1], "--path", "hf", "--reference", folders[1], "--text", text, "--window", 32, "--kl")
    assert found["text"]["mean_kl"] < 1e-5
    assert found["text"]["top1"] == 1
    assert found["text"]["ratio"]["ratio"] == pytest.approx(1, abs=1e-4)


def test_the_references_losses_are_kept(folders, text, measured, tmp_path):
    arguments = (folders[1], "--reference", folders[0], "--text", text, "--window", 32)
    first = measured(*arguments)
    (path,) = (tmp_path / "cache" / "losses").iterdir()
    assert measured(*arguments) == first
    assert list(path.parent.iterdir()) == [path]


def test_windows_begin_as_the_tokenizer_says(tmp_path, text, measured):
    folder = save_model(tmp_path / "begins", begins=True)
    counts = {}
    for bos in ("auto", "yes", "no"):
        for way in ("engine", "hf"):
            found = measured(folder, "--path", way, "--text", text, "--window", 32, "--bos", bos, "--max-tokens", 100)
            counts[bos, way] = found["text"]["tokens"], found["text"]["bos"]
    assert (
        counts["auto", "engine"]
        == counts["auto", "hf"]
        == counts["yes", "hf"]
        == counts["yes", "engine"]
        == (100, True)
    )
    assert counts["no", "engine"] == counts["no", "hf"] == (96, False)


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_and_the_rules(folders, text, questions, capsys, monkeypatch, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setitem(sys.modules, "rich.console", None)
    arguments = [folders[1], "--reference", folders[0], "--text", text, "--kl", "--choices", questions, "--window", 32]
    assert cli.main(["eval", *map(str, arguments)]) == 0
    out = capsys.readouterr().out
    for part in (
        *("low (engine) beside", "perplexity", "KL divergence, nats per token", "same likeliest token"),
        *("right answers", "with 95 %: at most", "windows of 32, without BOS", "Student's t", "McNemar's exact"),
    ):
        assert part in out


def test_a_model_alone_has_bounds_for_other_text(folders, text, capsys):
    assert cli.main(["eval", str(folders[1]), "--text", str(text), "--window", "32", "--confidence", "0.9"]) == 0
    out = capsys.readouterr().out
    assert "Other text of this kind: above" in out
    assert "each with 90 %" in out
    assert "reference" not in out


def test_what_the_user_can_put_right_is_one_line(folders, text, tmp_path, capsys):
    short, bad = tmp_path / "short.txt", tmp_path / "bad.jsonl"
    short.write_text("t")
    bad.write_text('{"question": "q", "choices": ["a", "b"], "answer": 7}\n')
    other = save_model(tmp_path / "other", vocab_size=261)
    for arguments, message in [
        ([], "nothing to measure: expected --text or --choices"),
        (["--text", text, "--kl"], "--kl needs --reference and --text"),
        (["--choices", bad, "--kl", "--reference", folders[0]], "--kl needs --reference and --text"),
        (["--text", short, "--window", 32], "at least two tokens, found 1"),
        (["--text", tmp_path / "none.txt"], "none.txt"),
        (["--text", "package:gensim/novels"], "expected a text, one of package:gensim/news"),
        (["--choices", bad], "bad.jsonl, line 1: expected an 'answer' of 0 to 1"),
        (["--text", text, "--window", 500], "a window of 500 tokens is more than the context of low, 128"),
        (["--text", text, "--path", "hf", "--cache-type", "f32"], "--cache-type is for the engine"),
        (
            ["--text", text, "--reference", other, "--window", 32],
            "other has a vocabulary of 261 tokens, low one of 260",
        ),
        (["--text", text, "--reference", tmp_path / "nowhere"], "nowhere"),
    ]:
        assert cli.main(["eval", str(folders[1]), *map(str, arguments)]) == 2, arguments
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err.splitlines()[-1]


@pytest.mark.parametrize(
    "option", [["--window", "0"], ["--confidence", "1"], ["--confidence", "x"], ["--bos", "maybe"]]
)
def test_a_bad_option_is_named(option, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", "model", "--text", "x", *option])
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


def test_the_losses_are_those_of_the_scorers(folders, text, measured):
    from tmac.evaluation.metrics import perplexity, token_losses
    from tmac.evaluation.scorer import EngineScorer

    with tmac.Engine.from_pretrained(folders[1]) as engine:
        scorer = EngineScorer(engine)
        losses = token_losses(scorer, scorer.encode(TEXT.strip()), 32)
    found = measured(folders[1], "--text", text, "--window", 32)["text"]
    assert found["perplexity"] == perplexity(losses)
    assert np.isfinite(losses).all()


def test_options_for_texts_are_not_ignored(folders, text, capsys):
    for option, way, message in [
        (["--memory-limit", "1G"], "hf", "--memory-limit is for the engine"),
        (["--draft", "ngram"], "hf", "--draft is for the engine"),
        (["--draft", "ngram"], "engine", "--draft is for commands that write texts: scores need no draft"),
    ]:
        assert cli.main(["eval", str(folders[1]), "--path", way, "--text", str(text), *option]) == 2
        assert capsys.readouterr().err == f"tmac: error: {message}\n"
