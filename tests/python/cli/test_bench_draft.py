"""`tmac bench --draft` and `--memory-limit`: plain decoding beside a draft."""

import json

import pytest

from tmac import cli

TEXT = "a b c a b c a b c a b c"


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "letters.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def bench(tiny_gguf, prompt):
    """`bench("--draft", "ngram", ...)`: the command with a tiny model and one text."""

    def run(*arguments, path=tiny_gguf, prompts=(prompt,)):
        files = [word for each in prompts for word in ("--prompt-file", each)]
        return cli.main(["bench", *([str(path)] if path else []), *map(str, (*files, *arguments))])

    return run


def test_json_has_both_kinds_of_runs(bench, capsys):
    assert bench("--draft", "ngram", "-n", 40, "-r", 3, "-t", 1, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["draft"], report["memory_limit"], report["n_threads"], report["streaming"]) == (
        "ngram",
        None,
        1,
        None,
    )
    (row,) = report["results"]
    assert (row["name"], row["tokens"], len(row["token_ids"])) == ("letters", 40, 40)
    assert len(row["plain_samples_ts"]) == len(row["draft_samples_ts"]) == len(row["speculation"]) == 3
    assert row["plain_ts"] == sorted(row["plain_samples_ts"])[1]
    assert row["factor"] == pytest.approx(row["draft_ts"] / row["plain_ts"])
    assert all(each["draft"] == "ngram" and each["tokens"] == 39 for each in row["speculation"])


def test_the_table_and_the_picture(bench, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="needs the extra tmac-cpu[demo]")
    picture = tmp_path / "guesses.png"
    assert bench("--draft", "ngram", "-n", 20, "-r", 1, "--stats-plot", picture) == 0
    out = capsys.readouterr().out
    for text in ("tiny_llama.gguf, draft ngram", "letters", "factor", "tokens/pass", "the same tokens in all 4 runs"):
        assert text in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_a_draft_plain_decoding_is_measured_alone(bench, capsys):
    assert bench("--draft", "none", "-n", 4, "-r", 1) == 0
    out = capsys.readouterr().out
    assert "plain" in out
    assert "factor" not in out
    assert bench("--draft", "none", "-n", 4, "-r", 1, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["results"]
    assert (row["draft_ts"], row["factor"], row["speculation"]) == (None, None, [])


def test_the_engine_is_loaded_as_the_options_say(bench, engine, tiny_gguf, prompt, capsys):
    engine.load_error = ValueError("stop here")
    options = ("--cache-type", "int8", "--chunk-size", 64, "--head-bits", 6, "--embedding-bits", 4, "-t", 2)
    assert bench("--memory-limit", "700M", "--draft", "planes:4", "--requantize", "all", *options) == 2
    assert "stop here" in capsys.readouterr().err
    assert engine.loaded == {
        "path": str(tiny_gguf),
        "num_threads": 2,
        "cache_type": "int8",
        "chunk_size": 64,
        "head_bits": 6,
        "embedding_bits": 4,
        "requantize": "all",
        "draft": "planes:4",
        "memory_limit": "700M",
        "kept_positions": 0,
    }


def test_the_packaged_texts():
    from tmac.cli.bench_draft import read_prompts

    assert [name for name, text in read_prompts(None).items() if len(text) > 500] == ["prose", "code", "copy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "4"], "--n-prompt is not for --draft and --memory-limit"),
        (["-d", "4"], "--n-depth is not for --draft and --memory-limit"),
        (["--profile"], "--profile is not for --draft and --memory-limit"),
        (["--bits", "4"], "--bits is not for --draft and --memory-limit"),
        (["-n", "4,5"], "--n-gen: with --draft or --memory-limit expected one number, at least 2"),
        (["-n", "1"], "--n-gen: with --draft or --memory-limit expected one number, at least 2"),
        (["-t", "1,2"], "--threads: with --draft or --memory-limit expected one positive number"),
        (["-n", "2000"], "expected 2000 tokens after"),
        (["--head-bits", "ternary"], "--head-bits ternary is for --shape"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(bench, arguments, message, capsys):
    assert bench("--draft", "ngram", "-r", 1, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_texts_that_cannot_be(bench, prompt, tmp_path, capsys):
    assert bench("--draft", "ngram", path=None) == 2
    assert "--draft and --memory-limit need the path of a checkpoint" in capsys.readouterr().err
    assert bench("--draft", "ngram", prompts=[prompt, prompt]) == 2
    assert f"--prompt-file {prompt}: expected files with different names" in capsys.readouterr().err
    assert bench("--draft", "ngram", prompts=[tmp_path / "none"]) == 2
    assert "none: No such file" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.write_text("")
    assert bench("--draft", "ngram", prompts=[empty]) == 2
    assert "empty: expected a text, found nothing" in capsys.readouterr().err
    assert bench("-n", 2) == 2
    assert "--prompt-file needs --draft or --memory-limit" in capsys.readouterr().err
