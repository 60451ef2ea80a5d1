"""The comparison of perplexity against size: what a row says, that a run goes on, and what is rendered."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a float model of random weights whose head is its embedding."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    folder = tmp_path_factory.mktemp("tiny")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def row(tool="tmac", setting="3 bits", bits=3.0, loss=0.01, model="tiny", **more):
    from benchmarks.accuracy_peers.rows import Row

    return Row(model, tool, setting, bits, 20 * (1 + loss), loss, loss - 0.001, loss + 0.001, **more)


def report(rows, not_run=()):
    from dataclasses import asdict

    return {
        "machine": {"cpu": "a CPU", "cpus": 2},
        "versions": {"hqq": {"hqq": "1.0"}},
        "models": {
            "tiny": {"source": "tiny.gguf", "weights": 7_000_000, "tokens": 9, "window": 4, "calibration_tokens": 5}
        },
        "not_run": list(not_run),
        "rows": [asdict(each) for each in rows],
    }


FLOAT = ("float", "float32", 32.0, 0.0)


def test_a_setting_says_grid_and_head():
    from benchmarks.accuracy_peers.plan import TOOLS, settings
    from benchmarks.accuracy_peers.setting import Grid, bits_of, split_head

    assert split_head("W3 g64 + head 6 bits") == ("W3 g64", "6 bits")
    assert split_head("Q4_K_M --token-embedding-type q4_0") == ("Q4_K_M --token-embedding-type q4_0", None)
    assert Grid.parse("W4 g128 asym") == Grid(4, 128, symmetric=False)
    assert Grid.parse("W2 g32") == Grid(2, 32, symmetric=True)
    for tool in TOOLS:
        assert len(set(settings(tool))) == len(settings(tool)) > 0
        for setting in settings(tool):
            own, _ = split_head(setting)
            if tool == "tmac":
                assert 0 < bits_of(own) < 9
            elif tool != "llama.cpp":
                Grid.parse(own)


@pytest.mark.parametrize("text", ["W9 g64", "W4", "W4 g64 sym", "4 bits group 64"])
def test_an_unknown_grid_is_refused(text):
    from benchmarks.accuracy_peers.setting import Grid

    with pytest.raises(ValueError, match="expected a setting as"):
        Grid.parse(text)


def test_an_unknown_head_is_refused():
    from benchmarks.accuracy_peers.setting import split_head

    with pytest.raises(ValueError, match="5 bits"):
        split_head("W3 g64 + head 5 bits")


def test_a_job_is_what_was_written(tmp_path):
    from benchmarks.accuracy_peers.job import Job

    np.save(tmp_path / "windows.npy", np.arange(6).reshape(2, 3))
    job = Job(tmp_path, tmp_path / "windows.npy", tmp_path / "text.txt", tmp_path / "more.txt", "W4 g64", tmp_path)
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    assert job.tokens() == [[0, 1, 2], [3, 4, 5]]


def test_what_a_tool_leaves_float_counts_16_bits():
    from benchmarks.accuracy_peers.results import Result

    shapes = {"a.weight": (4, 32), "b.weight": (8, 32)}
    # 4 bits of 128 weights beside 16 bits of 256: (512 + 4096) / 384
    assert Result({}, {"a.weight": 64}).bits_per_weight(shapes) == pytest.approx(12.0)
    assert Result({}, {}).bits_per_weight(shapes) == 16
    # a head of its own beside the embedding counts on top of the float model's weights
    assert Result({}, {"a.weight": 64, "b.weight": 128, "lm_head.weight": 48}).bits_per_weight(shapes) == 5.0


def test_bytes_of_codes_are_those_of_codes_scales_and_zeros():
    from benchmarks.accuracy_peers.results import least_bytes
    from tmac import QuantSpec
    from tmac.codes import Codes

    def bytes_of(spec, zeros):
        scales = np.ones((4, 2), np.float16)
        return least_bytes(Codes(spec, np.zeros((4, 64), np.uint8), scales, zeros))

    assert bytes_of(QuantSpec(3, 32), None) == 4 * 64 * 3 // 8 + 16
    integer = QuantSpec(4, 32, zero_point="integer")
    assert bytes_of(integer, np.full((4, 2), 8, np.uint8)) == 128 + 16
    assert bytes_of(integer, np.arange(8, dtype=np.uint8).reshape(4, 2)) == 128 + 16 + 4
    offset = QuantSpec(4, 32, zero_point="offset")
    assert bytes_of(offset, np.arange(8, dtype=np.float16).reshape(4, 2)) == 128 + 16 + 16


def test_a_float_head_is_rounded_and_counted(tiny):
    from benchmarks.accuracy_peers.results import EMBEDDING, Result, matrices, with_head
    from benchmarks.accuracy_peers.scorer import with_weights

    own = with_weights(tiny, {}).get_input_embeddings().weight.detach()
    for head, bits, error in (("6 bits", 6.5, 0.03), ("4 bits", 5.0, 0.1)):
        result = with_head(Result({}, {}), head, own)
        assert 8 * result.sizes[EMBEDDING] / own.numel() == bits
        difference = float((result.weights[EMBEDDING] - own).norm() / own.norm())
        assert error / 3 < difference < error
        assert result.bits_per_weight({EMBEDDING: tuple(own.shape)}) == bits
    assert EMBEDDING in matrices(tiny)
    assert "lm_head.weight" not in matrices(tiny)


def test_losses_are_those_of_the_model(tiny):
    from benchmarks.accuracy_peers.scorer import token_losses, with_weights

    windows = np.random.default_rng(1).integers(0, 97, (5, 12))
    model, done = with_weights(tiny, {}), []
    losses = token_losses(model, windows, done.append)
    with torch.inference_mode():
        logits = model(torch.from_numpy(windows)).logits.double().log_softmax(-1)
    want = -logits[:, :-1].gather(-1, torch.from_numpy(windows)[:, 1:, None])[..., 0]
    assert losses.shape == (5, 11)
    assert np.abs(losses - want.numpy()).max() < 1e-5
    assert done == [4, 5]


def test_weights_are_put_in_place_of_the_models(tiny):
    from benchmarks.accuracy_peers.scorer import with_weights

    name = "model.layers.1.mlp.up_proj.weight"
    model = with_weights(tiny, {name: torch.ones(96, 64)})
    assert bool((model.get_parameter(name) == 1).all())
    untied = with_weights(tiny, {"lm_head.weight": torch.zeros(97, 64)})
    assert float(untied.lm_head.weight.detach().abs().max()) == 0
    assert float(untied.get_input_embeddings().weight.detach().abs().max()) > 0
    with pytest.raises(ValueError, match="no such weight"):
        with_weights(tiny, {"model.layers.7.mlp.up_proj.weight": torch.ones(96, 64)})
    with pytest.raises(ValueError, match=r"expected \[2, 2\] for model.norm.weight"):
        with_weights(tiny, {"model.norm.weight": torch.ones(2, 2)})


def test_a_loss_has_an_interval_of_paired_windows():
    from benchmarks.accuracy_peers.scorer import loss_of, perplexity

    reference = np.random.default_rng(2).random((50, 7))
    assert perplexity(np.full((2, 3), math.log(12.0))) == pytest.approx(12.0)
    same = loss_of(reference, reference + math.log(1.05))
    assert same == pytest.approx((0.05, 0.05, 0.05))
    noise = np.random.default_rng(3).standard_normal((50, 1)) * 0.1
    middle, low, high = loss_of(reference, reference + noise)
    error = noise.std(ddof=1) / math.sqrt(50)
    assert math.log1p(high) - math.log1p(middle) == pytest.approx(1.96 * error)
    assert math.log1p(middle) - math.log1p(low) == pytest.approx(1.96 * error)


def test_a_gguf_file_gives_hugging_face_weights(tiny, tmp_path):
    gguf = pytest.importorskip("gguf")
    from benchmarks.accuracy_peers.results import read
    from benchmarks.accuracy_peers.scorer import with_weights

    own = {name: value.detach().numpy() for name, value in with_weights(tiny, {}).named_parameters()}
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name, value in own.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:  # pairs of rotary columns side by side
            value = value.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(value.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        stored = gguf.quantize(value, kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = read(tmp_path)
    assert set(result.weights) == {name for name, value in own.items() if value.ndim == 2}
    for name, value in result.weights.items():
        assert 8 * result.sizes[name] == 8.5 * value.numel()
        assert float(np.linalg.norm(value.numpy() - own[name]) / np.linalg.norm(own[name])) < 0.01


def test_the_version_of_llama_cpp_is_what_it_says():
    from benchmarks.accuracy_peers.llama_cpp import version_in

    assert version_in("version: 0.5.0-dev (build 9, commit abc)\nbuilt with GNU") == "0.5.0-dev (build 9, commit abc)"
    assert version_in("main: build = 4000 (abc)\n") == "4000 (abc)"
    assert version_in("") == "of unknown version"


def test_a_folder_without_a_result_is_refused(tmp_path):
    from benchmarks.accuracy_peers.results import read

    with pytest.raises(ValueError, match="found none"):
        read(tmp_path)


def test_a_checkpoint_may_be_in_a_folder_of_its_own(tmp_path):
    from benchmarks.accuracy_peers.results import checkpoint_folder

    (tmp_path / "w4g128").mkdir()
    (tmp_path / "w4g128" / "config.json").write_text("{}")
    assert checkpoint_folder(tmp_path) == tmp_path / "w4g128"
    (tmp_path / "config.json").write_text("{}")
    assert checkpoint_folder(tmp_path) == tmp_path


def test_a_text_is_cut_into_windows_with_the_token_for_the_beginning():
    from benchmarks.accuracy_peers.reference import WINDOW, cut

    class Letters:
        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return type("Encoding", (), {"input_ids": [ord(letter) for letter in text]})

    found = cut(Letters(), ["a" * 5 * WINDOW, "b" * 5 * WINDOW], 5, bos=1)
    assert found.shape == (5, WINDOW)
    assert set(found[:, 0]) == {1}
    assert [chr(line[1]) for line in found] == ["a", "a", "b", "b", "b"]
    assert cut(Letters(), ["a" * WINDOW], 1, bos=None).shape == (1, WINDOW)
    with pytest.raises(ValueError, match=f"at least {2 * WINDOW} tokens, found 9"):
        cut(Letters(), ["a" * 9], 2, bos=None)


def test_our_flow_gets_the_tokens_without_the_one_for_the_beginning():
    from benchmarks.accuracy_peers.ours import without_bos

    assert without_bos([[1, 7, 8], [1, 9, 7]]) == [7, 8, 9, 7]
    assert without_bos([[3, 7, 8], [1, 9, 7]]) == [3, 7, 8, 1, 9, 7]
    assert without_bos([[3, 7]]) == [3, 7]


def test_passages_of_sources_take_turns():
    from benchmarks.accuracy_peers.texts import mixed

    assert mixed(["a", "b", " ", "c"], ["x "]) == "a\n\nx\n\nb\n\nc"


def test_a_run_goes_on_with_the_rows_that_it_has(tmp_path):
    from benchmarks.accuracy_peers.rows import RunFile

    path, head = tmp_path / "run.json", {"machine": {"cpu": "a CPU"}, "command": ["x"]}
    run = RunFile.open(path, head, add=True)
    run.refuse(("tiny", "hqq", "W2 g64"), "in /some/place/file.py: out of memory")
    run.refuse(("tiny", "hqq", "W3 g64"), "no")
    run.add(row("hqq", "W3 g64", loss=0.0))
    run.head["models"]["tiny"] = {"weights": 1}
    run.save()
    again = RunFile.open(path, head, add=True)
    assert again.has(("tiny", "hqq", "W3 g64"))
    assert not again.has(("tiny", "hqq", "W2 g64"))
    assert again.rows == [row("hqq", "W3 g64", loss=0.0)]
    assert [(line["setting"], line["why"]) for line in again.not_run] == [("W2 g64", "in file.py: out of memory")]
    assert again.head["models"] == {"tiny": {"weights": 1}}
    again.add(row("hqq", "W3 g64", loss=0.02))
    assert [each.loss for each in RunFile.open(path, head, add=True).rows] == [0.02]
    assert RunFile.open(path, head, add=False).rows == []
    with pytest.raises(ValueError, match="another CPU"):
        RunFile.open(path, {"machine": {"cpu": "another CPU"}}, add=True)


def test_the_front_and_the_smallest_within_a_loss():
    from benchmarks.accuracy_peers.rows import front, smallest_within

    rows = [row(bits=bits, loss=loss) for bits, loss in ((5, 0.001), (3, 0.06), (4, 0.01), (4.5, 0.02), (2, 0.9))]
    assert [each.bits_per_weight for each in front(rows)] == [2, 3, 4, 5]
    assert smallest_within(rows, 0.01).bits_per_weight == 4
    assert smallest_within(rows, 0.0001) is None


def test_the_tables_name_every_row_and_what_did_not_run():
    from benchmarks.accuracy_peers.page import everything, summary

    rows = [row(*FLOAT), row(bits=3.0, loss=0.008, as_it_runs=20.2), row("hqq", "W4 g64 + head 6 bits", 4.97, 0.04)]
    refused = {"model": "tiny", "tool": "gptqmodel", "setting": "W5 g64", "why": "long\nbits is not 5\n"}
    text = everything(report(rows, [refused]))
    assert "| **tmac 3 bits** | 3.00 | 20.160 | +0.80 % | +0.70 % .. +0.90 % | 20.200 | 0 |" in text
    assert "| hqq W4 g64 + head 6 bits | 4.97 |" in text
    assert "| hqq | - | 4.97 (W4 g64 + head 6 bits) |" in text
    assert "- tiny, gptqmodel W5 g64: bits is not 5\n" in text
    assert "| tmac | 3.00 (3 bits) | 3.00 (3 bits) |" in summary(report(rows))


def test_the_page_is_written_between_its_marks(tmp_path):
    from benchmarks.accuracy_peers.page import picture_name, write_page

    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs" / "accuracy.md"
    document.write_text("before\n<!-- accuracy: old.json -->\nold\n<!-- end of accuracy -->\nafter\n", "utf-8")
    (tmp_path / "README.md").write_text("no marks\n", "utf-8")
    source = tmp_path / "run.json"
    source.write_text(json.dumps(report([row(*FLOAT), row(), row("llama.cpp", "Q4_0", 5.4, 0.03)])), "utf-8")
    write_page(source, tmp_path)
    text = document.read_text("utf-8")
    assert text.startswith("before\n<!-- accuracy: run.json -->\n### tiny\n")
    assert "llama.cpp Q4_0" in text
    assert (tmp_path / "README.md").read_text("utf-8") == "no marks\n"
    picture = tmp_path / "docs" / "images" / picture_name("tiny")
    assert picture.name == "accuracy-tiny.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--readme"], "either --model, or --from"),
        (["--model", "a.gguf", "--from", "b.json"], "either --model, or --from"),
        (["--model", "a.gguf", "--readme"], "--readme needs the run in a file"),
    ],
)
def test_the_command_line_refuses_what_it_cannot_do(words, message, capsys):
    from benchmarks.accuracy import parse

    with pytest.raises(SystemExit):
        parse(words)
    assert message in capsys.readouterr().err


def test_a_whole_run_of_a_tiny_model(tiny, tmp_path, monkeypatch):
    """With a tool that halves every weight, in place of the real ones."""
    from benchmarks import accuracy
    from benchmarks.accuracy_peers.reference import Reference
    from benchmarks.accuracy_peers.results import matrices

    work = tmp_path / "tiny"
    work.mkdir()
    (work / "float").symlink_to(tiny)
    windows = np.random.default_rng(4).integers(0, 97, (3, 16))
    for name in ("text.npy", "calibration.npy"):
        np.save(work / name, windows)
    (work / "calibration.txt").write_text("x")
    asked = []

    def quantize(folder, job):
        from safetensors.torch import load_file, save_file

        asked.append(job.setting)
        if job.setting == "Q3_K":
            raise RuntimeError("no such type")
        dense = {name: value / 2 for name, value in load_file(tiny / "model.safetensors").items() if value.ndim == 2}
        save_file(dense, job.out / "dense.safetensors")
        sizes = {name: math.prod(shape) // 2 for name, shape in matrices(tiny).items()}
        (job.out / "sizes.json").write_text(json.dumps(sizes))
        return "1 (abc)"

    monkeypatch.setattr(accuracy.llama_cpp, "quantize", quantize)
    monkeypatch.setattr(Reference, "_write", None)
    output = tmp_path / "run.json"
    words = [
        "--model",
        "tiny.gguf",
        "--name",
        "tiny",
        "--work",
        tmp_path,
        "--json",
        output,
        "--add",
        "--llama-cpp",
        ".",
    ]
    words = [*map(str, words), "--tools", "llama.cpp", "hqq", "--settings", "Q3_K", "W4 g64"]
    for _ in range(2):
        assert accuracy.main(words) == 0
    found = json.loads(output.read_text())
    assert [(each["tool"], each["setting"]) for each in found["rows"]] == [
        ("llama.cpp", "W4 g64"),
        ("float", "float32"),
    ]
    half = found["rows"][0]
    assert half["bits_per_weight"] == 4
    assert half["perplexity"] != found["rows"][1]["perplexity"]
    assert asked == ["Q3_K", "W4 g64", "Q3_K"]
    why = {(line["tool"], line["setting"]): line["why"] for line in found["not_run"]}
    assert why["llama.cpp", "Q3_K"] == "no such type"
    assert "peer-hqq" in why["hqq", "W4 g64"]
    assert found["models"]["tiny"]["tokens"] == 3 * 15
    assert Path(work / "llama.cpp-W4-g64" / "about.json").exists()


def test_the_documented_table_is_what_the_committed_run_renders(repository):
    from benchmarks.accuracy_peers.page import MARKS, PLACES, of_model, picture_name

    name = "docs/accuracy.md"
    text = (repository / name).read_text(encoding="utf-8")
    path = MARKS.source(text)
    found = json.loads((repository / path).read_text(encoding="utf-8"))
    assert text == MARKS.replaced(text, path, PLACES[name](found))
    for model in found["models"]:
        assert not of_model(found, model) or (repository / "docs" / "images" / picture_name(model)).exists()
        assert found["models"][model]["tokens"] >= 100_000
