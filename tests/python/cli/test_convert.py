import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoints import float_model

import tmac
from tmac import QuantSpec, cli
from tmac.cli.describe import name_ranges, spec_text
from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import to_float32


@pytest.fixture
def model(tmp_path):
    return float_model(tmp_path / "model")


def test_a_float_model_is_rounded(tmac_command, model, tmp_path):
    done = tmac_command("convert", model, tmp_path / "out", "--bits", 3, "--group-size", 16, "--sym", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["format"] == "float"
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["layers"] == 14
    assert [(group["count"], group["spec"]) for group in facts["specs"]] == [(14, "W3, group 16, zero 4, f16 scales")]
    assert facts["bytes_after"] < facts["bytes_before"]
    assert 0 < facts["weights_seconds"] < facts["seconds"]
    assert facts["weights_mb_per_second"] > 0
    assert facts["tokenizer"] == "tokenizer.json"
    assert facts["peak_memory_bytes"] is None or facts["peak_memory_bytes"] > 2**20
    source, written = open_checkpoint(model), open_checkpoint(tmp_path / "out")
    spec = QuantSpec(3, 16)
    assert set(written.tensors) == {name for name in source.tensors if "_proj" not in name}
    for name, layer in written.layers.items():
        stored = source.tensors[f"{name}.weight"]
        expected = tmac.round_to_nearest(to_float32(stored.read(), stored.dtype), spec)
        assert layer.read().spec == spec
        np.testing.assert_array_equal(layer.read().codes, expected.codes)
        np.testing.assert_array_equal(layer.read().scales, expected.scales)


def convert(*arguments):
    return cli.main(["convert", *map(str, arguments)])


@pytest.mark.parametrize(
    ("tie", "options", "layers", "tied"),
    [
        (False, [], {}, {}),
        (False, ["--head-bits", 8], {"lm_head": (8, "linear")}, {}),
        (False, ["--embedding-bits", 5], {"model.embed_tokens": (5, "embedding")}, {}),
        (True, [], {}, {}),
        (True, ["--head-bits", 8], {"lm_head": (8, "linear")}, {}),
        (True, ["--embedding-bits", 6], {"model.embed_tokens": (6, "embedding")}, {"lm_head": "model.embed_tokens"}),
        (
            True,
            ["--embedding-bits", 6, "--head-bits", 6],
            {"model.embed_tokens": (6, "embedding")},
            {"lm_head": "model.embed_tokens"},
        ),
        (
            True,
            ["--embedding-bits", 6, "--head-bits", 4],
            {"model.embed_tokens": (6, "embedding"), "lm_head": (4, "linear")},
            {},
        ),
    ],
)
def test_head_and_embedding(tmp_path, capsys, tie, options, layers, tied):
    model = float_model(tmp_path / "model", tie=tie)
    assert convert(model, tmp_path / "out", "--bits", "ternary", *options) == 0
    capsys.readouterr()
    written, source = open_checkpoint(tmp_path / "out"), open_checkpoint(model)
    others = {name: layer for name, layer in written.layers.items() if "_proj" not in name}
    assert {name: (layer.spec.bits, layer.kind) for name, layer in others.items()} == layers
    assert written.tied == tied
    assert written.config["tie_word_embeddings"] == (tie and "lm_head" not in layers)
    floats = {"model.embed_tokens", "lm_head"} - layers.keys() - ({"lm_head"} if tie else set())
    assert {name.removesuffix(".weight") for name in written.tensors if "norm" not in name} == floats
    for name in layers:
        weight = source.tensors.get(f"{name}.weight", source.tensors["model.embed_tokens.weight"])
        codes = tmac.round_to_nearest(weight.read().astype(np.float32), written.layers[name].spec)
        np.testing.assert_array_equal(written.layers[name].read().codes, codes.codes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--bits 4"),
        (["--group-size", "64"], "--bits 4"),
        (["--bits", "4", "--group-size", "0"], "group_size"),
        (["--bits", "4", "--head-bits", "8", "--group-size", "-5"], "group_size"),
    ],
)
def test_a_float_model_needs_to_be_told_how(model, tmp_path, capsys, options, message):
    assert convert(model, tmp_path / "out", *options) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--bits", "4"], ["--sym"], ["--head-bits", "8"], ["--embedding-bits", "8"]])
def test_a_quantized_model_is_not_rounded_again(model, tmp_path, capsys, option):
    assert convert(model, tmp_path / "out", "--bits", 4) == 0
    assert convert(tmp_path / "out", tmp_path / "again", *option) == 2
    assert f"{option[0]} is for float models" in capsys.readouterr().err


def test_an_existing_folder_needs_force(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert convert(model, out, "--bits", 4) == 0
    before = (out / "model.safetensors").read_bytes()
    assert convert(model, out, "--bits", 2) == 2
    assert "exists already" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before
    assert convert(model, out, "--bits", 2, "--force") == 0
    assert (out / "model.safetensors").read_bytes() != before
    assert convert(out, out, "--force") == 2
    assert convert(out, model, "--force") == 2
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "out"]


def test_shards(model, tmp_path, capsys):
    assert convert(model, tmp_path / "out", "--bits", 4, "--max-shard-size", "20KB") == 0
    assert "14 quantized layers" in capsys.readouterr().out
    files = list((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert len(open_checkpoint(tmp_path / "out").layers) == 14


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "5XB", "", "1e30"])
def test_a_wrong_size(model, tmp_path, capsys, size):
    with pytest.raises(SystemExit):
        convert(model, tmp_path / "out", "--bits", 4, "--max-shard-size", size)
    assert "expected a size" in capsys.readouterr().err


def test_weights_with_nan_are_an_error(tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    model = float_model(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, model / "model.safetensors")
    assert convert(model, tmp_path / "out", "--bits", 4) == 2
    assert "model.layers.1.mlp.up_proj.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_whose_weights_are_transposed_is_refused(model, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    assert convert(model, tmp_path / "out", "--bits", 4) == 2
    assert "transposed" in capsys.readouterr().err


def test_neither_torch_nor_transformers_is_imported(model, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from tmac.cli import main\n"
        f"assert main(['convert', {str(model)!r}, {str(tmp_path / 'out')!r}, '--bits', '4']) == 0\n"
        f"assert main(['info', {str(tmp_path / 'out')!r}]) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_nothing(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    model = float_model(tmp_path / "model", hidden=512, layers=24)
    command = [sys.executable, "-m", "tmac", "convert", model, tmp_path / "out", "--bits", "4"]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            until = time.monotonic() + 60
            while not list(tmp_path.glob(".out.*")) and time.monotonic() < until:
                time.sleep(0.001)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_info_describes_a_checkpoint(tmac_command, tmp_path):
    model = float_model(tmp_path / "model", layers=3, tie=True)
    assert tmac_command("convert", model, tmp_path / "out", "--bits", 2, "--embedding-bits", 8).returncode == 0
    done = tmac_command("info", tmp_path / "out")
    assert done.returncode == 0
    assert "tmac, LlamaForCausalLM" in done.stdout
    assert "lm_head has the weight of model.embed_tokens" in done.stdout
    assert "model.layers.{0-2}.mlp.up_proj" in done.stdout
    assert "tokenizer: tokenizer.json" in done.stdout
    listed = tmac_command("info", tmp_path / "out", "--layers").stdout
    assert "model.layers.1.mlp.up_proj  128x64  W2, group 32, offsets, f16 scales" in listed
    facts = json.loads(tmac_command("info", tmp_path / "out", "--json").stdout)
    written = open_checkpoint(tmp_path / "out")
    weights = sum(layer.out_features * layer.in_features for layer in written.layers.values())
    assert facts["quantized_weights"] == weights
    assert facts["quantized_bytes"] == sum(layer.nbytes for layer in written.layers.values())
    assert facts["bits_per_weight"] == 8 * facts["quantized_bytes"] / weights
    assert [group["count"] for group in facts["specs"]] == [1, 21]
    assert len(facts["layers"]) == 22
    assert facts["other_tensors"] == {"F16": 7}


def test_info_reads_no_weight(tmp_path, capsys, monkeypatch):
    from tmac.formats.safetensors_file import TensorStore

    model = float_model(tmp_path / "model")
    assert convert(model, tmp_path / "out", "--bits", 4) == 0
    monkeypatch.delattr(TensorStore, "read")
    for path in (model, tmp_path / "out"):
        assert cli.main(["info", str(path)]) == 0
    assert "nothing; `tmac convert --bits` rounds" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["/nowhere/model"], ["--layers"]])
def test_info_says_what_is_wrong(arguments, capsys):
    assert cli.main(["info", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_names_become_ranges():
    names = [f"model.layers.{layer}.mlp.{part}" for layer in (0, 1, 2, 5) for part in ("up", "down")]
    assert name_ranges(names) == ["model.layers.{0-2,5}.mlp.up", "model.layers.{0-2,5}.mlp.down"]
    experts = [f"layers.{layer}.experts.{expert}.w1" for layer in range(3) for expert in range(8)]
    assert name_ranges(experts) == ["layers.{0-2}.experts.{0-7}.w1"]
    assert name_ranges([*experts, "layers.3.experts.1.w1"]) == [
        "layers.{0-2}.experts.{0-7}.w1",
        "layers.3.experts.1.w1",
    ]
    assert name_ranges(["lm_head", "a{0}.b", "layers.07.x"]) == ["lm_head", "a{0}.b", "layers.07.x"]
    assert name_ranges([]) == []


def test_a_spec_in_a_few_words():
    assert (
        spec_text(QuantSpec(4, -1, zero_point="integer", scale_format="f32"))
        == "W4, per row, integer zeros, f32 scales"
    )
    assert spec_text(QuantSpec(2, 64, "ternary", activation="token")) == (
        "ternary, group 64, f16 scales, token activations"
    )
