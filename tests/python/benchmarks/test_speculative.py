"""What drafts gain: rows and their bounds, the worker on a small model, the tables."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from checkpoints import float_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def row(table="memory", weights="W8", draft="planes:4", case="prose", disk="", factor=1.5, **more):
    from benchmarks.speculative_runs.rows import Row

    known = {"tokens_per_pass": 2.5, "drafted": 40, "accepted": 30}
    if table == "streamed":
        known |= {"limit_bytes": 9e8, "base_pass_bytes": 6e8, "pass_bytes": 5e8, "throttle": ""}
    return Row(table, weights, draft, case, disk, factor, factor - 0.1, factor + 0.1, 50.0, 75.0, {**known, **more})


def report(rows, not_run=()):
    return {
        "machine": {"cpu": "a CPU", "cpus": 2},
        "limits": "memory: cgroup v1; disk: the reader's own throttle",
        "threads": 2,
        "runs": 5,
        "versions": {"llama.cpp": "b1"},
        "models": {"W4": "a.gguf"},
        "not_run": list(not_run),
        "rows": [asdict(each) for each in rows],
    }


def test_pairs_make_a_factor_and_unequal_numbers_the_ratio_of_medians():
    from benchmarks.speculative_runs.rows import timed_row

    key = ("memory", "W4", "ngram", "code", "")
    pairs = timed_row(key, [3.0, 4.0, 9.0], [1.0, 2.0, 1.0], note="x")
    assert (pairs.factor, pairs.low, pairs.high, pairs.ms, pairs.base_ms) == (3.0, 2.0, 9.0, 1000.0, 4000.0)
    assert (pairs.key, pairs.more) == (key, {"note": "x"})
    assert timed_row(key, [1.0, 5.0], [2.0, 4.0, 8.0]).factor == pytest.approx(0.75)
    assert timed_row(("verify", "W8", "plain", "4", ""), [1.0], [1.5], cost=True).factor == 1.5


@pytest.mark.parametrize(
    ("given", "asked", "met"),
    [
        ({"factor": 1.39}, 1.4, False),
        ({"factor": 1.4}, 1.4, True),
        ({"draft": "auto", "weights": "W4", "factor": 0.1}, None, True),
        ({"table": "verify", "draft": "plain", "case": "4", "factor": 1.11}, 1.1, False),
        ({"table": "verify", "draft": "plain", "case": "8", "weights": "W4", "factor": 1.9}, 1.9, True),
        ({"table": "verify", "draft": "planes:4", "case": "4", "factor": 9}, None, True),
        ({"table": "streamed", "factor": 3.0, "mmap_ms": 299.0}, 3.0, False),
        ({"table": "streamed", "factor": 3.0, "mmap_ms": 300.0}, 3.0, True),
    ],
)
def test_what_was_asked_is_the_most_cost_or_the_least_factor(given, asked, met):
    found = row(**given)
    assert (found.asked, found.met) == (asked, met)
    assert ("MISSED" in str(found)) == (not met)


def test_a_run_goes_on_where_it_stopped(tmp_path):
    from benchmarks.speculative_runs.in_memory import attempt
    from benchmarks.speculative_runs.rows import RunFile

    path, head = tmp_path / "run.json", {"machine": {"cpu": "a CPU"}}
    first, second = row(case="prose"), row(case="code")
    calls = []

    def breaks():
        calls.append("breaks")
        yield first
        raise ValueError("wrong tokens in /home/me/x.gguf")

    def works():
        calls.append("works")
        yield from (first, second)

    keys = [first.key, second.key]
    run = RunFile.open(path, head, add=True)
    attempt(run, keys, breaks)
    assert [each.key for each in run.rows] == [first.key]
    assert [line["case"] for line in run.not_run] == ["code"]
    assert run.not_run[0]["why"] == "wrong tokens in x.gguf"
    again = RunFile.open(path, head, add=True)
    attempt(again, keys, works)
    attempt(again, keys, works)
    assert calls == ["breaks", "works"]
    assert ([each.key for each in again.rows], again.not_run) == (keys, [])
    assert RunFile.open(path, head, add=True).rows == again.rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model of 4 bits with a token for each byte."""
    from tmac import QuantSpec
    from tmac.formats import open_checkpoint
    from tmac.formats.float_rounding import Rounding, rounded
    from tmac.formats.tmac_writer import write_checkpoint

    folder = tmp_path_factory.mktemp("speculative")
    source = float_model(folder / "float", vocab=256, tie=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(source / "tokenizer.json"))
    four = QuantSpec(4, 32)
    write_checkpoint(rounded(open_checkpoint(source), Rounding(four, four, four)), folder / "small")
    return folder / "small"


@pytest.fixture
def prompts(monkeypatch):
    """Short ones, for a token is a byte."""
    from benchmarks.speculative_runs import worker
    from benchmarks.speculative_runs.texts import SAMPLED, Text

    options = {"temperature": 0.8, "seed": 1}
    texts = {"prose": Text("It was night."), "code": Text("x = [1, 2, 3]\n"), SAMPLED: Text("It was night.", options)}
    monkeypatch.setattr(worker, "TEXTS", texts)


def test_weights_are_rounded_to_another_grid(checkpoint, tmp_path):
    from benchmarks.speculative_runs.checkpoints import rounded_checkpoint
    from tmac import QuantSpec
    from tmac.formats import open_checkpoint

    out = rounded_checkpoint(checkpoint, tmp_path, QuantSpec(8, 32))
    assert out == rounded_checkpoint(checkpoint, tmp_path, QuantSpec(8, 32)) == tmp_path / "small-W8g32"
    before, after = open_checkpoint(checkpoint), open_checkpoint(out)
    assert before.layers.keys() == after.layers.keys()
    assert after.tied == before.tied
    for name, layer in after.layers.items():
        old, new = before.layers[name].read(), layer.read()
        assert new.spec.bits == 8
        # 4 bits of one scale are 8 bits of a sixteenth of it, if that is the scale which is found: half a step else.
        step = np.abs(old.dequantize()).max() / 127
        assert np.abs(new.dequantize() - old.dequantize()).max() <= step


def test_the_worker_measures_a_model(checkpoint, tmp_path, prompts, monkeypatch):
    from benchmarks.speculative_runs.checkpoints import rounded_checkpoint
    from benchmarks.speculative_runs.worker import Worker, answer
    from tmac import QuantSpec

    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path / "cache"))
    path = str(rounded_checkpoint(checkpoint, tmp_path, QuantSpec(8, 32)))
    worker = Worker()
    opened = {"do": "open", "path": path, "draft": "planes:4", "threads": 1}
    plan = answer(worker, {**opened, "memory_limit": 1 << 50})
    assert plan["total"] > plan["weights"] > 0 == plan["streamed"]
    worker.engine.close()
    assert answer(worker, {**opened, "memory_limit": None}) == {}
    seconds = answer(worker, {"do": "passes", "rows": [1, 2, 4], "runs": 2})
    assert {name: len(times) for name, times in seconds.items()} == {"1": 2, "2": 2, "4": 2}
    one = {"text": "code", "tokens": 8}
    plain = answer(worker, {"do": "generate", **one, "speculative": False})
    drafted = answer(worker, {"do": "generate", **one, "speculative": True})
    assert plain["token_ids"] == drafted["token_ids"]
    assert (len(plain["token_ids"]), plain["speculation"], plain["bytes_read"]) == (8, None, 0)
    assert drafted["speculation"]["tokens"] >= 7
    assert plain["seconds_per_token"] > 0
    assert plain["peak_bytes"] is None or plain["peak_bytes"] > 1 << 20
    found = answer(worker, {"do": "compare", "texts": ["prose", "sampled"], "tokens": 6, "runs": 1, "draft": True})
    assert [len(found[name]["draft_samples_ts"]) for name in found] == [1, 1]
    assert found["prose"]["token_ids"] != found["sampled"]["token_ids"]
    ids = [*answer(worker, {"do": "encode", "text": "code"})["ids"], *plain["token_ids"]]
    first = len(ids) - 8
    share = answer(worker, {"do": "agreement", "ids": ids, "first": first})
    assert share["tokens"] == 8
    assert answer(worker, {"do": "guesses", "ids": ids, "first": first}) == {"share": 1.0, "tokens": 8}
    other = [*ids[:-1], (ids[-1] + 1) % 256]
    assert answer(worker, {"do": "guesses", "ids": other, "first": first})["share"] == 0.875
    again = answer(worker, {"do": "agreement", "ids": other, "first": first})["share"]
    assert again in (share["share"], share["share"] - 0.125)
    refused = answer(worker, {"do": "generate", "text": "code", "tokens": -1, "speculative": False})
    assert refused.keys() == {"error", "kind"}
    assert answer(worker, {"do": "main"})["kind"] == "ValueError"
    worker.engine.close()


def test_a_wrong_pass_is_not_timed(checkpoint, prompts):
    from benchmarks.speculative_runs import worker as module

    worker = module.Worker()
    worker.open(str(checkpoint), None, None, 1)
    right = module.tree_runner

    def wrong(decoder, threads):
        run = right(decoder, threads)
        return lambda *arguments, **options: run(*arguments, **options) * np.float32(1 + 2**-20)

    module.tree_runner = wrong
    try:
        found = module.answer(worker, {"do": "passes", "rows": [1, 2], "runs": 1})
    finally:
        module.tree_runner = right
        worker.engine.close()
    assert "row 0 of 2 has other bits" in found["error"]


def test_a_worker_of_its_own_says_what_is_wrong(tmp_path):
    from benchmarks.speculative_runs.process import Measured, NoRowError

    with Measured(None, tmp_path) as worker:
        with pytest.raises(NoRowError, match="ValueError: expected one of open"):
            worker.ask("nothing")
        with pytest.raises(NoRowError, match="missing"):
            worker.ask("open", path=str(tmp_path / "missing"), draft=None, memory_limit=None, threads=1)


def test_the_page_has_every_row_and_what_did_not_run():
    from benchmarks.speculative_runs.page import page

    rows = [
        row(table="verify", draft="plain", case="16", factor=2.0),
        row(table="verify", draft="plain", case="4", factor=1.2),
        row(table="agreement", factor=0.9),
        row(factor=1.3),
        row(weights="W4", draft="auto", drafted=0),
        row(table="streamed", disk="500M", factor=3.5, mmap_ms=290.0, throttle="reader"),
    ]
    line = {
        "table": "memory",
        "weights": "W4",
        "draft": "ngram",
        "case": "code",
        "disk": "",
        "why": "a\nwrong tokens\n",
    }
    text = page(report(rows, [line]))
    assert "| weights | layout for | 1 token, ms | 4 tokens | 16 tokens |" in text
    assert "| W8 | plain | 75.0 | **1.20** (1.10..1.30) | 2.00 (1.90..2.10) |" in text
    assert "| W8 | planes:4 | 0.90 |" in text
    assert "| W8 | planes:4 | prose | 13.3 | 20.0 | **1.30** (1.20..1.40) | 2.50 | 0.75 of 40 |" in text
    assert "| W4 | auto | prose | 13.3 | 20.0 | 1.50 (1.40..1.60) | 2.50 | - |" in text
    assert (
        "| 500M (reader) | W8 | planes:4 | prose | 900 | 600 | 500 | 75.0 | 50.0 | 3.50 (3.40..3.60) | **5.8** |"
        in text
    )
    assert "- memory W4 ngram code: wrong tokens\n" in text


def test_the_page_shows_the_committed_run(repository):
    from benchmarks.speculative_runs.page import MARKS, PAGE, page

    text = (repository / PAGE).read_text(encoding="utf-8")
    path = MARKS.source(text)
    committed = sorted((repository / "benchmarks" / "results").glob("*-speculative.json"))
    if not committed:
        assert path == "none"
        return
    assert repository / path in committed
    assert text == MARKS.replaced(text, path, page(json.loads((repository / path).read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--model"),
        (["--model", "x", "--runs", "0"], "--runs"),
        (["--model", "x", "--share", "1.5"], "--share"),
        (["--model", "x", "--add"], "--add"),
        (["--model", "x", "--page"], "--page"),
        (["--model", "x", "--disks", "fast"], "--disks"),
        (["--model", "x", "--tables", "all"], "--tables"),
    ],
)
def test_a_bad_option_is_named(options, named, capsys):
    from benchmarks import speculative

    with pytest.raises(SystemExit) as stopped:
        speculative.main(options)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err
