import json
import sys
import types

import pytest
from fake_core import use_fakes

from tmac import cli

TINY = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture
def bench(monkeypatch):
    """`bench("--shape", "tiny", ...)`: the command with fakes in place of the compiled model and the memory."""
    from tmac.runtime import speed, synthetic

    use_fakes(monkeypatch)
    monkeypatch.setattr(synthetic, "SHAPES", {"tiny": TINY})
    monkeypatch.setattr(speed, "PROBE_BYTES", 1 << 16)
    monkeypatch.setattr(speed.ReadProbe.__init__, "__defaults__", (1 << 16,))
    return lambda *arguments: cli.main(["bench", *map(str, arguments)])


@pytest.fixture
def loaded(monkeypatch):
    """Paths, and the options that their weights are loaded with: a tiny model without any."""
    from tmac.runtime import loading
    from tmac.runtime.families import describe

    calls = []

    def open_model(path, *, requantize):
        calls.append((path, {"requantize": requantize}))
        return types.SimpleNamespace(description=describe(TINY))

    monkeypatch.setattr(loading, "open_model", open_model)
    monkeypatch.setattr(loading, "load_weights", lambda opened, builder, **options: calls[-1][1].update(options))
    return calls


def test_json_has_a_row_for_every_test_and_number_of_threads(bench, capsys):
    assert bench("--shape", "tiny", "-p", "8,16", "-n", "4", "-d", "0,3", "-t", "1,2", "-r", 2, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    names = [(row["test"], row["n_threads"]) for row in report["results"]]
    tests = ["pp8", "pp16", "tg4", "pp8 @ d3", "pp16 @ d3", "tg4 @ d3"]
    assert names == [(test, threads) for threads in (1, 2) for test in tests]
    for row in report["results"]:
        assert len(row["samples_ts"]) == 2
        assert row["min_ts"] <= row["median_ts"] <= row["max_ts"]
        assert (row["share_of_limit"] is None) == (row["n_gen"] == 0)
        assert row["core_seconds_per_token"] >= 0
    assert report["profiles"] == []
    assert report["model"] == "tiny"
    assert report["family"] == "llama"
    assert report["model_size"] > 0


def test_the_specs_are_those_of_the_options(bench, capsys):
    def specs(*options):
        assert bench("--shape", "tiny", "-p", 1, "-n", 1, "-r", 1, "--json", *options) == 0
        return json.loads(capsys.readouterr().out)["specs"]

    both = specs()
    assert (both["layers"]["bits"], both["layers"]["group_size"], both["layers"]["zero_point"]) == (4, 128, "offset")
    assert (both["head"]["bits"], both["head"]["group_size"]) == (8, 32)
    both = specs("--bits", 2, "--group-size", 64, "--sym", "--head-bits", 6)
    assert (both["layers"]["bits"], both["layers"]["group_size"], both["layers"]["zero_point"]) == (2, 64, "fixed")
    assert both["head"]["bits"] == 6
    assert specs("--bits", "ternary")["layers"]["codebook"] == "ternary"
    assert specs("--bits", "ternary", "--group-size", -1)["layers"]["activation"] == "token"


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_and_the_profile(bench, monkeypatch, capsys, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setitem(sys.modules, "rich.console", None)
    assert bench("--shape", "tiny", "-p", 8, "-n", 4, "-t", 2, "-r", 1, "--profile") == 0
    out = capsys.readouterr().out
    for text in ("tiny, llama", "pp8", "tg4", "share", "tokens/s", "tg4, 2 threads: a pass", "gate_up", "rest"):
        assert text in out


def test_the_profile_in_json(bench, capsys):
    assert bench("--shape", "tiny", "-p", 0, "-n", 4, "-t", 1, "-r", 1, "--profile", "--json") == 0
    (profile,) = json.loads(capsys.readouterr().out)["profiles"]
    seconds = profile["seconds_per_pass"]
    assert (profile["test"], profile["n_threads"]) == ("tg4", 1)
    assert sum(seconds.values()) - seconds["total"] == pytest.approx(seconds["total"])


def test_a_synthetic_model_gets_the_context_that_the_tests_need(bench, capsys):
    assert bench("--shape", "tiny", "-p", 0, "-n", 4, "-d", 60, "-t", 1, "-r", 1) == 0
    assert "tg4 @ d60" in capsys.readouterr().out


def test_a_checkpoint_is_loaded_as_the_options_say(bench, loaded, tmp_path, capsys):
    options = ("-p", 4, "-n", 2, "-t", 1, "-r", 1, "--head-bits", 8, "--embedding-bits", 4, "--requantize", "all")
    assert bench(tmp_path, *options, "--json") == 0
    assert loaded == [(str(tmp_path), {"requantize": "all", "head_bits": 8, "embedding_bits": 4})]
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == tmp_path.name
    assert report["specs"] is None
    assert bench(tmp_path, "-p", 0, "-n", 2, "-d", 31, "-t", 1) == 2
    assert "tg2 @ d31: the model's context is 32 positions" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected the path of a checkpoint, or --shape NAME"),
        (["model", "--shape", "tiny"], "expected the path of a checkpoint, or --shape NAME"),
        (["--shape", "huge"], "unknown shape 'huge'; known are tiny"),
        (["--shape", "tiny", "--group-size", "0"], "group_size"),
        (["--shape", "tiny", "--requantize", "all"], "--requantize is for PATH"),
        (["model", "--bits", "4"], "--bits is for --shape"),
        (["model", "--sym"], "--sym is for --shape"),
        (["model", "--head-bits", "ternary"], "--head-bits ternary is for --shape"),
        (["--shape", "tiny", "-p", "0", "-n", "0"], "nothing to measure"),
        (["--shape", "tiny", "-t", "1,0"], "nothing to measure"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(bench, loaded, arguments, message, capsys):
    assert bench(*arguments, "-r", 1) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [["-p", "x"], ["-n", "1,,2"], ["-d", "-1"], ["-t", "two"], ["-r", "0"], ["--bits", "9"], ["--cache-type", "int4"]],
)
def test_a_bad_option_is_named(bench, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        bench("--shape", "tiny", *option)
    assert stopped.value.code == 2
    assert option[0] in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("name", "content"), [("missing.gguf", None), ("broken.gguf", b"GGUF" + bytes(8))])
def test_a_wrong_or_broken_checkpoint_is_named(bench, tmp_path, name, content, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert bench(path) == 2
    assert name in capsys.readouterr().err


def test_a_real_file_is_measured(tiny_gguf, tmac_command):
    options = (
        "-p",
        20,
        "-n",
        4,
        "-d",
        "0,30",
        "-t",
        2,
        "-r",
        2,
        "--chunk-size",
        8,
        "--head-bits",
        8,
        "--profile",
        "--json",
    )
    done = tmac_command("bench", tiny_gguf, *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [row["test"] for row in report["results"]] == ["pp20", "tg4", "pp20 @ d30", "tg4 @ d30"]
    assert all(row["median_ts"] > 0 for row in report["results"])
    for profile in report["profiles"]:
        seconds = profile["seconds_per_pass"]
        assert 0 < seconds["qkv"] < seconds["total"]
        assert seconds["rest"] >= 0
