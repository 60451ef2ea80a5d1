import json
import os
import struct
import subprocess
import sys

import pytest

import tmac
from tmac import cli
from tmac.formats.gguf import GgufFile

ROWS = ("prefill, tokens/s", "decoding, tokens/s", "weights in memory, MB", "perplexity", "next token as float32, %")


def demo_json(tmac_command, path, *options, **environment):
    done = tmac_command(
        "demo", "--json", "--threads", 1, "--max-new-tokens", 4, *options, TMAC_DEMO_MODEL=path, **environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_table(tmac_command, tiny_gguf, tmp_path):
    plot = tmp_path / "plot.png"
    options = ("--max-new-tokens", 4, "--tokens", 300, "--prompt", "then [bold]", "--threads", 1, "--plot", plot)
    done = tmac_command("demo", *options, TMAC_DEMO_MODEL=tiny_gguf)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "> then [bold]" in done.stdout
    assert all(row in done.stdout for row in ROWS)
    assert "tmac W4 g32" in done.stdout
    assert "qgemm_mad_w8" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_report(tmac_command, tiny_gguf):
    report = demo_json(tmac_command, tiny_gguf, "--tokens", 700, "--bits", 8, "--head-bits", 8)
    models = report["models"]
    assert list(models) == ["float32", "bfloat16", "tmac"]
    assert models["float32"]["agreement"] == 1
    assert models["tmac"]["perplexity"] == pytest.approx(models["float32"]["perplexity"], rel=0.01)
    assert models["tmac"]["agreement"] > 0.9
    rotary_bytes = 2 * 4 * 4  # two buffers of half a head, float32 in both models
    assert models["float32"]["weights_bytes"] - rotary_bytes == 2 * (models["bfloat16"]["weights_bytes"] - rotary_bytes)
    assert len(models["tmac"]["decode_samples"]) >= 5
    assert sum(report["kernels"].values()) == 15
    assert report["tokens"] == 700
    assert report["seconds"].keys() == {"import", "fetch", "load", "quantize", "answer", "speed", "quality", "total"}


@pytest.mark.parametrize(
    "options", [("--bits", "ternary"), ("--bits", "3", "--group-size", "-1"), ("--bits", "1", "--sym")]
)
def test_other_widths(tmac_command, tiny_gguf, options):
    report = demo_json(tmac_command, tiny_gguf, "--tokens", 64, *options)
    assert report["models"]["tmac"]["perplexity"] > 1


@pytest.mark.parametrize("method", ["lut", "mad"])
def test_every_isa_gives_the_same_text(tmac_command, tiny_gguf, method):
    """In one numerics class: which classes an instruction set prefers is its own business (docs/numerics.md)."""
    rows = [row for row in tmac.kernels() if row["runnable"] and row["bits"] == 4 and row["method"] == method]
    isas = sorted({row["isa"] for row in rows if "group" in row["activations"]})
    reports = [demo_json(tmac_command, tiny_gguf, "--tokens", 64, TMAC_ISA=isa, TMAC_METHOD=method) for isa in isas]
    for isa, report in zip(isas, reports, strict=True):
        assert any(name.startswith(f"qgemm_{method}_w4_{isa}") for name in report["kernels"])
    assert len({report["answer"] for report in reports}) == 1
    assert len({report["models"]["tmac"]["perplexity"] for report in reports}) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--group-size", "0"), "group_size"),
        (("--head-bits", "9"), "bits"),
        (("--plot", "no/such/folder/plot.png"), "there is no such folder"),
    ],
)
def test_options_that_cannot_be(tiny_gguf, monkeypatch, capsys, options, message):
    monkeypatch.setenv("TMAC_DEMO_MODEL", str(tiny_gguf))
    assert cli.main(["demo", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("tmac: error: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [("--bits", "0"), ("--threads", "0"), ("--tokens", "1"), ("--max-new-tokens", "-3")]
)
def test_options_out_of_range(capsys, options):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", *options])
    assert stopped.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_a_damaged_file(tiny_gguf, tmp_path, monkeypatch, capsys):
    path = tmp_path / "damaged.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:1000])
    monkeypatch.setenv("TMAC_DEMO_MODEL", str(path))
    assert cli.main(["demo"]) == 2
    assert f"tmac: error: {path}" in capsys.readouterr().err


def test_a_scale_that_is_not_a_number(tiny_gguf, tmp_path, monkeypatch, capsys):
    data, path = bytearray(tiny_gguf.read_bytes()), tmp_path / "nan.gguf"
    offset = GgufFile(tiny_gguf).info("blk.1.attn_v.weight").offset
    data[offset : offset + 2] = b"\x00\x7e"  # the scale of the first block, f16
    path.write_bytes(data)
    monkeypatch.setenv("TMAC_DEMO_MODEL", str(path))
    assert cli.main(["demo"]) == 2
    error = capsys.readouterr().err
    assert f"tmac: error: {path}: [quantize_] model.layers.1.self_attn.v_proj: the weight holds NaN or Inf" in error


def test_more_tokens_than_embeddings(tiny_gguf, tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.gguf"
    old, new = (b"token_embd.weight" + struct.pack("<IQQ", 2, 32, rows) for rows in (270, 269))
    path.write_bytes(tiny_gguf.read_bytes().replace(old, new))
    monkeypatch.setenv("TMAC_DEMO_MODEL", str(path))
    assert cli.main(["demo"]) == 2
    assert f"tmac: error: {path}: tokenizer.ggml.tokens: expected no more tokens" in capsys.readouterr().err


def test_without_an_extra(monkeypatch, capsys):
    monkeypatch.setattr("tmac.cli.demo.PACKAGES", {"torch", "no_such_package"})
    assert cli.main(["demo"]) == 2
    assert "the demo needs no_such_package: pip install 'tmac-cpu[demo]'" in capsys.readouterr().err


def test_the_real_model(tmac_command, smollm2):
    """The main job: W4 group 32 loses next to nothing (the file's own grid is Q4_1) and the answer is sensible.

    Perplexity within 0.3 % of float32, over 1024 tokens: the demo's own 4096 would take four times as long.
    """
    # One thread: two would wait for a core that another process has taken, and their speed would be the neighbours'.
    # The demo's own prompt: after a shorter one float32 prefers "The" to "L" by 0.08 nats, and any rounding decides.
    options = ("--threads", 1, "--tokens", 1024, "--max-new-tokens", 24)
    done = tmac_command("demo", "--json", *options, TMAC_DEMO_MODEL=smollm2, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    models = report["models"]
    assert "Paris" in report["answer"]
    assert report["tokens"] == 1024
    assert models["tmac"]["perplexity"] == pytest.approx(models["float32"]["perplexity"], rel=0.003)
    assert models["tmac"]["agreement"] > 0.95
    assert models["tmac"]["weights_bytes"] < models["bfloat16"]["weights_bytes"]


GENERATE = """
import sys
import tmac
from tmac.cli.demo import PROMPT
from tmac.cli.demo_measure import stream_answer
from tmac.hf import load_gguf
model, tokenizer = load_gguf(sys.argv[1])
tmac.quantize_(model, tmac.QuantConfig(bits=4, group_size=32, head_bits=8))
layers = [module for module in model.modules() if isinstance(module, tmac.nn.QuantLinear)]
print(*sorted({layer.kernel for layer in layers}))
stream_answer(model, tokenizer, PROMPT, 24, sys.stdout)
"""


def real_model_text(path, isa):
    """24 tokens of the real model in a process that does nothing else, and the kernels that made them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TMAC_")}
    command = [sys.executable, "-c", GENERATE, str(path)]
    env = {**clean, "TMAC_ISA": isa, "TMAC_METHOD": "lut", "TMAC_TUNING": "off"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr
    kernels, _, text = done.stdout.partition("\n")
    return text, kernels


@pytest.fixture(scope="module")
def scalar_text(smollm2):
    text, _ = real_model_text(smollm2, "scalar")
    assert "Paris" in text
    return text


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_the_real_model_says_the_same_under_every_isa(request, require_features, smollm2, isa):
    names = "qgemm_lut_w4", "qgemm_mad_w8"  # the layers and the head
    rows = [row for row in tmac.kernels() if row["isa"] == isa and row["name"].startswith(names)]
    if not rows:
        pytest.skip(f"this build has no {isa} kernels")
    for row in rows:
        require_features(row)
    text, kernels = real_model_text(smollm2, isa)
    assert isa in kernels
    assert "scalar" not in kernels
    assert text == request.getfixturevalue("scalar_text")
