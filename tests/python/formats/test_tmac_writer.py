"""Our own format is written as docs/format.md says, and any reader of safetensors reads it."""

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import OFFSET, SPECS, codes, float_model, layer, mixed, same_codes, tensor
from safetensors import safe_open

import tmac
from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import Checkpoint
from tmac.formats.in_order import in_order
from tmac.formats.safetensors_writer import header_bytes
from tmac.formats.tmac_config import LayerEntry, quantization_config, with_changes
from tmac.formats.tmac_writer import write_checkpoint


def assert_same(written, source):
    assert source.layers
    assert written.layers.keys() == source.layers.keys()
    for name, ours in written.layers.items():
        theirs = source.layers[name]
        assert same_codes(ours.read(), theirs.read()), name
        assert (ours.kind, ours.out_features, ours.in_features, ours.bias) == (
            theirs.kind,
            theirs.out_features,
            theirs.in_features,
            theirs.bias,
        )
    assert written.tensors.keys() == source.tensors.keys()
    for name, ours in written.tensors.items():
        assert ours.dtype == source.tensors[name].dtype
        np.testing.assert_array_equal(ours.read(), source.tensors[name].read())


@pytest.mark.parametrize("shard", [1, 3000, 10**9])
@pytest.mark.parametrize("k", [1, 40, 52])
def test_what_is_written_is_read_back(tmp_path, k, shard):
    source = mixed(tmp_path / "source", k=k, tied={"lm_head_2": "model.embed_tokens"})
    write_checkpoint(source, tmp_path / "out", max_shard_bytes=shard)
    written = open_checkpoint(tmp_path / "out")
    assert_same(written, source)
    assert written.config == source.config
    assert written.tied == source.tied


def test_converting_again_changes_no_byte(tmp_path):
    write_checkpoint(mixed(tmp_path), tmp_path / "first")
    write_checkpoint(open_checkpoint(tmp_path / "first"), tmp_path / "second")
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [each.name for each in first] == [each.name for each in second]
    tensors = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")]
    assert tensors[0] == tensors[1]
    assert_same(open_checkpoint(tmp_path / "second"), open_checkpoint(tmp_path / "first"))


@pytest.mark.parametrize("shard", [2000, 10**9])
def test_the_safetensors_package_reads_the_files(tmp_path, shard):
    """It refuses gaps, overlaps, unsorted offsets and what is not padded with spaces."""
    torch = pytest.importorskip("torch", reason="the numpy loader of safetensors cannot read bf16")
    source = mixed(tmp_path / "source")
    write_checkpoint(source, tmp_path / "out", max_shard_bytes=shard)
    written = open_checkpoint(tmp_path / "out")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert (len(files) > 1) == (shard == 2000)
    seen = set()
    for path in files:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118  no iterable
                seen.add(name)
                value = file.get_tensor(name)
                if name in written.tensors:
                    stored = source.tensors[name].read()
                    assert list(value.shape) == list(stored.shape)
                    raw = value.reshape(-1).view(torch.uint8).numpy()
                    np.testing.assert_array_equal(raw, np.ascontiguousarray(stored).reshape(-1).view(np.uint8))
        assert json.loads(path.read_bytes()[8:].split(b"\n")[0][: int.from_bytes(path.read_bytes()[:8], "little")])
    expected = {*source.tensors}
    for name, each in source.layers.items():
        expected |= set(each.read().to_tensors(f"{name}."))
    assert seen == expected
    assert safe_dtype(files, "model.norm.weight") == "BF16"


def safe_dtype(files, name):
    for path in files:
        with safe_open(path, "pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_slice(name).get_dtype()
    return None


def test_tensors_are_aligned_to_their_elements(tmp_path):
    write_checkpoint(mixed(tmp_path / "source"), tmp_path / "out")
    sizes = {"I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
    raw = (tmp_path / "out" / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    assert start % 4096 == 0
    del header["__metadata__"]
    offsets = [entry["data_offsets"] for entry in header.values()]
    assert offsets == sorted(offsets)
    assert {entry["dtype"] for entry in header.values()} >= sizes.keys()
    for name, entry in header.items():
        assert (start + entry["data_offsets"][0]) % sizes.get(entry["dtype"], 1) == 0, name


def test_the_index_of_shards_is_that_of_hugging_face(tmp_path):
    source = mixed(tmp_path / "source")
    written = write_checkpoint(source, tmp_path / "out", max_shard_bytes=2500)
    files = sorted(each.name for each in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{index:05d}-of-{len(files):05d}.safetensors" for index in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": written.nbytes}
    assert set(index["weight_map"].values()) == set(files)
    for name in files:
        mine = [each for each, file in index["weight_map"].items() if file == name]
        with safe_open(tmp_path / "out" / name, "np") as file:
            assert sorted(mine) == sorted(file.keys())


def test_config_names_the_default_once_and_what_differs(tmp_path):
    write_checkpoint(mixed(tmp_path / "source"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == {"model_type": "llama", "hidden_size": 52}
    assert quantization["quant_method"] == "tmac"
    assert {key: quantization[key] for key in OFFSET.to_dict()} == OFFSET.to_dict()
    assert quantization["modules_to_not_convert"] == ["lm_head"]
    layers = quantization["layers"]
    assert layers["model.layers.0.mlp.up_proj"] == {"in_features": 52}
    assert layers["model.layers.0.self_attn.k_proj"] == {
        "bits": 2, "codebook": "ternary", "zero_point": "fixed", "in_features": 52,
    }  # fmt: skip
    assert layers["model.embed_tokens"] == {"bits": 5, "in_features": 52, "kind": "embedding"}
    assert layers["model.layers.0.self_attn.o_proj"]["fixed_zero"] == 127.5


@pytest.mark.parametrize("default", SPECS.values(), ids=str)
def test_every_spec_survives_beside_every_default(default):
    specs = [*SPECS.values(), OFFSET.replace(fast_aggregation=True), tmac.QuantSpec(4, 64, fixed_zero=7.5)]
    layers = {"a": LayerEntry(default, 64), "b": LayerEntry(default, 64)}
    layers |= {f"layer{index}": LayerEntry(spec, 64) for index, spec in enumerate(specs)}
    content = json.loads(json.dumps(quantization_config(layers)))
    read = with_changes(tmac.QuantSpec(), {key: content[key] for key in default.to_dict()})
    for name, entry in layers.items():
        changes = content["layers"].get(name, {})
        assert with_changes(read, {key: value for key, value in changes.items() if key != "in_features"}) == entry.spec


def test_companions_are_copied_and_made(tmp_path):
    folder = float_model(tmp_path / "source")
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (folder / "secrets.txt").write_text("not a part of the model")

    def refuse():
        raise tmac.FormatError("no such tokenizer")

    texts = {"vocab.json": lambda: "{}", "merges.txt": refuse}
    source = replace(open_checkpoint(folder), layers=mixed(folder).layers, texts=texts)
    written = write_checkpoint(source, tmp_path / "out")
    assert written.left_out == {"merges.txt": "no such tokenizer"}
    beside = {"chat_template.jinja", "generation_config.json", "tokenizer.json", "vocab.json"}
    assert set(written.companions) == beside
    assert {each.name for each in (tmp_path / "out").iterdir()} == {*beside, "config.json", "model.safetensors"}
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ x }}"


def test_a_checkpoint_without_quantized_layers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one quantized layer"):
        write_checkpoint(open_checkpoint(float_model(tmp_path / "source")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.other.planes", "x.trits", "model.embed_tokens.scales"])
def test_a_tensor_that_looks_like_ours_is_refused(tmp_path, name):
    source = mixed(tmp_path / "source")
    source = replace(source, tensors={name: tensor(name, "U8", np.zeros((4, 1, 1), np.uint8))})
    with pytest.raises(tmac.FormatError, match=name):
        write_checkpoint(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_a_reader_leaves_nothing(tmp_path):
    def broken():
        raise tmac.FormatError("model.safetensors: broken")

    source = mixed(tmp_path / "source")
    name = "model.layers.0.self_attn.o_proj"
    source = replace(source, layers={**source.layers, name: replace(source.layers[name], read=broken)})
    with pytest.raises(tmac.FormatError, match="broken"):
        write_checkpoint(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_header_has_room_for_long_names(tmp_path):
    name = "\u00e9\U0001f600" * 100
    made = codes(OFFSET, 3, 8)
    many = {f"{name}.{index}": layer(f"{name}.{index}", made) for index in range(40)}
    source = Checkpoint("made", tmp_path / "source", None, many, {})
    write_checkpoint(source, tmp_path / "out")
    assert_same(open_checkpoint(tmp_path / "out"), source)
    assert header_bytes([("a", 2)]) < 250


def test_work_is_used_in_order_and_errors_end_it():
    used = []
    assert list(in_order(range(50), lambda item: item * 2, used.append)) == list(range(50))
    assert used == [item * 2 for item in range(50)]

    def fail(item):
        if item == 20:
            raise KeyError(item)
        return item

    used.clear()
    with pytest.raises(KeyError):
        list(in_order(range(50), fail, used.append))
    assert used == list(range(20))


def test_a_closed_iterator_stops_its_threads():
    items, used = range(10**15), []  # more than any machine gets through
    work = in_order(items, lambda item: item, used.append)
    next(work)
    work.close()
    count = len(used)
    assert count < len(items)
    time.sleep(0.05)
    assert len(used) == count
