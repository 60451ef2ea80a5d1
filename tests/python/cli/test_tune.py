import json
import sys

import pytest

from tmac import QuantSpec, _core, cli, tuner

W2 = QuantSpec(2, 32, zero_point="offset")


@pytest.fixture
def tune_command(tmac_command, tmp_path):
    def run(*arguments, **environment):
        defaults = {"TMAC_TUNING": "on", "TMAC_CACHE_DIR": tmp_path}
        return tmac_command("tune", "--threads", 1, *arguments, **{**defaults, **environment})

    return run


def test_show_prints_the_candidates_their_times_and_the_choice(tune_command):
    done = tune_command("--shapes", "16x32", "33x70", "--bits", 2, "--show")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("chosen") == 2
    for title in ("16x32 W2 group 32 offset", "33x70 W2 group 32 offset", "m=1, us", "m=8, us", "m=128, us"):
        assert title in done.stdout
    for names in _core.candidate_kernels(W2):
        assert all(done.stdout.count(name) >= 2 for name in names)


def test_json_and_force(tune_command):
    def measured(*arguments):
        done = tune_command("--json", *arguments)
        assert done.returncode == 0, done.stderr
        return [shape["measured"] for shape in json.loads(done.stdout)["shapes"]]

    assert measured("--shapes", "16x32") == [True]
    assert measured("--shapes", "16x32", "32x16") == [False, True]
    assert measured("--shapes", "16x32", "32x16", "--force") == [True, True]
    assert measured("--shapes", "16x32", "--sym") == [True]


def test_a_model_has_its_shapes_and_its_head(timer, tiny_gguf, capsys):
    assert cli.main(["tune", "--model", str(tiny_gguf), "--bits", "2", "ternary", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows, columns = max((shape["out_features"], shape["in_features"]) for shape in report["shapes"])
    head = [shape for shape in report["shapes"] if shape["spec"]["bits"] == 8]
    assert [(shape["out_features"], shape["in_features"]) for shape in head] == [(rows, columns)]
    assert {shape["spec"]["codebook"] for shape in report["shapes"]} == {"uniform", "ternary"}
    assert len(timer.calls) == len(report["shapes"]) == len({json.dumps(shape["spec"]) + str(shape["out_features"]) +
        "x" + str(shape["in_features"]) for shape in report["shapes"]})  # fmt: skip


def test_the_specs_are_those_that_quantize_makes(timer, tiny_gguf):
    pytest.importorskip("torch", reason="needs the extra tmac-cpu[torch]")
    import torch

    import tmac

    config = tmac.QuantConfig(bits=3, group_size=16)
    layer = tmac.quantize_(torch.nn.Sequential(torch.nn.Linear(24, 12)), config)[0]
    assert cli.main(["tune", "--shapes", "12x24", "--bits", "3", "--group-size", "16"]) == 0
    assert [call[:3] for call in timer.calls] == [(layer.spec, 12, 24)]


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_needs_no_rich(timer, monkeypatch, capsys, rich):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setitem(sys.modules, "rich.console", None)
    for options in ([], ["--show"]):
        assert cli.main(["tune", "--shapes", "16x32", *options]) == 0
        out = capsys.readouterr().out
        assert "16x32 W4 group 32 offset" in out
        assert _core.candidate_kernels(QuantSpec(4, 32, zero_point="offset"))[-1][0] in out


def test_without_shapes_those_of_a_model_are_taken(timer, capsys):
    assert cli.main(["tune"]) == 0
    assert (4096, 4096) in [call[1:3] for call in timer.calls]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "16x32", "--group-size", "0"], "group_size"),
        (["--shapes", "16x999999"], "in_features"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--shapes", "16x32", "--head-bits", "9", "--bits", "9"], "--bits"),
    ],
)
def test_a_wrong_option_is_one_line(tune_command, arguments, message):
    done = tune_command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("shape", ["16", "x", "0x16", "16x", "-1x3", "1x2x3"])
def test_a_wrong_shape_is_refused(shape, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["tune", "--shapes", shape])
    assert stopped.value.code == 2
    assert "--shapes" in capsys.readouterr().err


def test_a_file_that_is_no_llama(timer, tmp_path, capsys):
    import gguf

    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "other")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert cli.main(["tune", "--model", str(path)]) == 2
    assert "other.gguf" in capsys.readouterr().err


def test_ctrl_c(timer, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tuner, "measure", interrupted)
    assert cli.main(["tune", "--shapes", "16x32"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
