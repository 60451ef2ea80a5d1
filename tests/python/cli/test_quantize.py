import json
import math
import sys

import pytest

pytest.importorskip("transformers", reason="needs the extra tmac-cpu[hf]")

from tmac import QuantSpec, cli
from tmac.hf import auto

LAYERS = {
    f"model.layers.{block}.mlp.{name}": {
        "spec": QuantSpec(bits, 64).to_dict(),
        "text": f"W{bits} g64",
        "bits_per_weight": bits + 0.25,
        "weights": 4096,
        "kind": "linear",
        "block": block,
        "predicted_loss": 0.001,
    }
    for block in range(3)
    for name, bits in (("up_proj", 3), ("down_proj", 4))
}
LAYERS["lm_head"] = {**LAYERS["model.layers.0.mlp.up_proj"], "kind": "head", "block": 3}
TRIAL = {
    "mode": "single",
    "stage": "full",
    "bits": 3.75,
    "bytes_per_token": 12_000_000,
    "predicted": 0.01,
    "measured": {"loss": 0.0081, "upper": 0.0094, "count": 100_000, "about": {}},
    "seconds": 12.3,
}


def make_report(held=True, **changes):
    return {
        "model": "tiny",
        "out": "out",
        "goal": {"max_loss": 0.01, "bits": None},
        "rule": "the rule",
        "held": held,
        "reason": "the next smaller trial fails",
        "bits_per_weight": 3.75,
        "bytes_per_token": 12_000_000,
        "loss": 0.0081,
        "upper": 0.0094,
        "count": 100_000,
        "counted": "tokens",
        "measured": {"perplexity": 12.345678},
        "next_smaller": {**TRIAL, "bits": 3.7, "measured": {"upper": 0.0103}},
        "layers": LAYERS,
        "trials": [TRIAL, {**TRIAL, "bits": 3.5, "mode": "sequential"}, {**TRIAL, "stage": "probe", "bits": 3.0}],
        "not_activated": ["dead.layer"],
        "left_float": ["router"],
        "notes": ["a note"],
        **changes,
    }


@pytest.fixture
def search(monkeypatch):
    """Stands for `auto_quantize`; `search.report` is what it gives, `search.calls` what it was asked."""

    class Fake:
        def __init__(self):
            self.report, self.calls, self.error = make_report(), [], None

        def __call__(self, *args, **options):
            self.calls.append((args, options))
            if self.error is not None:
                raise self.error
            return auto.AutoResult(None, None, self.report["held"], 0, 0, 0, 0, {}, self.report, "folder")

    fake = Fake()
    monkeypatch.setattr(auto, "auto_quantize", fake)
    return fake


def test_the_report_is_printed(search, capsys):
    assert cli.main(["quantize", "in", "out"]) == 0
    out = capsys.readouterr().out
    for text in (
        "mlp.up_proj", "3:3", "lm_head", "3.500", "wanted: a loss of at most 1.00 %; held", "3.750 bits per weight",
        "12.0 MB read per token", "with 95 % confidence below 0.94 %, on 100000 tokens", "perplexity 12.35",
        "rule: the rule", "dead.layer", "left as it is: router", "note: a note", "next smaller: 3.700 bits", "folder",
    ):  # fmt: skip
        assert text in out, text


def test_a_bound_that_was_missed_is_the_exit_status_3(search, capsys):
    search.report = make_report(held=False, reason="no model holds the bound", next_smaller=None)
    assert cli.main(["quantize", "in", "out"]) == 3
    assert "MISSED: this is the best model" in capsys.readouterr().out
    search.report = make_report(held=False, goal={"max_loss": None, "bits": 1.0})
    assert cli.main(["quantize", "in", "out", "--bits", "1"]) == 3
    assert "MISSED: this is the smallest model" in capsys.readouterr().out


def test_json(search, capsys):
    assert cli.main(["quantize", "in", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == search.report


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {"max_loss": None, "bits": None, "resume": True, "force": False, "budget": None, "sequential": False}),
        (["--max-loss", "1%"], {"max_loss": 0.01}),
        (["--max-loss", "0.05"], {"max_loss": 0.05}),
        (["--bits", "3.2"], {"bits": 3.2}),
        (["--budget", "20m"], {"budget": 1200.0}),
        (["--budget", "90s"], {"budget": 90.0}),
        (["--budget", "1.5h"], {"budget": 5400.0}),
        (["--budget", "30"], {"budget": 30.0}),
        (["--fresh", "--force", "--sequential"], {"resume": False, "force": True, "sequential": True}),
        (["--calibration", "a.txt", "--text", "b.txt"], {"calibration": "a.txt", "text": "b.txt"}),
        (["--widths", "2,4", "--window", "256"], {"widths": [2, 4], "window": 256}),
        (["--evaluation-tokens", "2000"], {"evaluation_tokens": 2000}),
    ],
)
def test_options(search, capsys, arguments, expected):
    assert cli.main(["quantize", "in", "out", *arguments]) == 0
    (_, options) = search.calls[0]
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-loss", "0"], ["--max-loss", "-1%"], ["--max-loss", "x"], ["--bits", "0"], ["--budget", "0m"],
        ["--budget", "m"], ["--max-loss", "1%", "--bits", "3"], ["--recipe", "magic"], ["--window", "0"],
    ],
)  # fmt: skip
def test_wrong_options(search, capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["quantize", "in", "out", *arguments])
    assert stopped.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize("error", [ValueError("[auto_quantize] too short"), FileExistsError("out exists already")])
def test_what_the_user_can_put_right_is_one_line(search, capsys, error):
    search.error = error
    assert cli.main(["quantize", "in", "out"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"tmac: error: {error}"]


def test_what_is_not_installed_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tmac.hf.auto", None)
    assert cli.main(["quantize", "in", "out"]) == 2
    assert "pip install 'tmac-cpu[hf]'" in capsys.readouterr().err


def test_ctrl_c(search, capsys):
    search.error = KeyboardInterrupt()
    assert cli.main(["quantize", "in", "out"]) == cli.INTERRUPTED


def test_a_report_goes_where_it_is_asked_for(search, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert cli.main(["quantize", "in", "out", "--report", str(tmp_path / "report")]) == 0
    assert json.loads((tmp_path / "report" / "report.json").read_text()) == search.report
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_front_of_a_report(search):
    from tmac.quant.report import comparable, pareto_front

    trials = [
        {"bits": bits, "stage": stage, "measured": {"loss": loss}}
        for bits, stage, loss in ((3, "full", 0.2), (4, "full", 0.1), (4.5, "full", 0.15), (5, "probe", 0.01))
    ]
    assert [trial["bits"] for trial in pareto_front(comparable(trials))] == [3, 4]
    assert comparable(trials[3:]) == trials[3:]


def test_a_real_search_by_the_command(tiny_gguf, tmp_path, capsys):
    """The whole command on a tiny model with its own tokenizer, and once more from its log."""
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"the {number} cats and the {number * 7 % 100} dogs" for number in range(400)))
    other = tmp_path / "other.txt"
    other.write_text(" ".join(f"a {number} dog of {number * 3 % 50} cats" for number in range(400)))
    options = [
        *("--calibration", text, "--text", other, "--bits", 5, "--widths", "4,8", "--scorer", "hf", "--json"),
        *("--calibration-tokens", 256, "--gradient-tokens", 128, "--evaluation-tokens", 256, "--window", 32),
    ]
    arguments = [*map(str, ["quantize", tiny_gguf, tmp_path / "out", *options])]
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert 4 < report["bits_per_weight"] <= 5
    assert math.isfinite(report["loss"])
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == report["trials"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == content
    assert cli.main([*arguments, "--window", "48"]) == 2
    assert "changed: window (was 32, is 48)" in capsys.readouterr().err
