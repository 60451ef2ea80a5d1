"""GGUF files as checkpoints, and what is not one."""

import json
import shutil
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tmac.formats import FormatError, open_checkpoint
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_rows import rotary_pairs
from tmac.formats.tmac_writer import write_checkpoint

FAMILIES = Path(__file__).parents[2] / "data" / "gguf_families"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def name_in_file(name):
    if not name.startswith("model.layers."):
        return {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}[name]
    _, _, number, part = name.split(".", 3)
    return f"blk.{number}.{NAMES[part]}"


class Copy:
    """A file whose metadata and tensors can be changed before it is written."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.keys = {
            key: (field.types[0], field.types[-1], field.contents())
            for key, field in reader.fields.items()
            if not key.startswith("GGUF.")
        }
        self.tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}

    def write(self, path):
        writer = gguf.GGUFWriter(path, "none")
        writer.kv_data[0].clear()
        for key, (kind, item, value) in self.keys.items():
            writer.add_key_value(key, value, kind, item if kind == gguf.GGUFValueType.ARRAY else None)
        for name, (data, kind) in self.tensors.items():
            writer.add_tensor(name, data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def test_every_fixture_gives_its_own_values(fixtures_dir):
    opened = set()
    for path in sorted((fixtures_dir / "gguf").glob("base-*.gguf")):
        checkpoint, file = open_checkpoint(path), GgufFile(path)
        assert checkpoint.format == "gguf"
        for name, layer in checkpoint.layers.items():
            info = file.info(f"{name_in_file(name)}.weight")
            expected = file.read(info.name)
            if name.endswith(("q_proj", "k_proj")):
                expected = expected[rotary_pairs(4 if name.endswith("q_proj") else 2, len(expected))]
            codes = layer.read()
            assert np.array_equal(codes.dequantize().view(np.uint32), expected.view(np.uint32)), f"{path.stem} {name}"
            assert layer.source_type == info.type_name
            assert layer.nbytes == info.nbytes
            assert (layer.out_features, layer.in_features) == codes.codes.shape
            assert layer.spec.replace(scale_format=codes.spec.scale_format) == codes.spec
            opened.add(layer.source_type)
        assert checkpoint.nbytes == sum(info.nbytes for info in file.tensors.values())
    assert opened >= {"Q4_0", "Q4_1", "TQ1_0", "TQ2_0"}


def test_the_float_file_and_the_packed_ones_have_the_same_names(fixtures_dir):
    floats, packed = (open_checkpoint(fixtures_dir / "gguf" / f"base-{kind}.gguf") for kind in ("f16", "Q4_0"))
    assert not floats.layers
    assert floats.tensors.keys() == packed.tensors.keys() | {f"{name}.weight" for name in packed.layers}
    assert packed.layers["model.embed_tokens"].kind == "embedding"
    assert packed.layers["lm_head"].kind == "linear"
    tensor = floats.tensors["model.layers.0.self_attn.q_proj.weight"]
    values = tensor.read()
    raw = GgufFile(floats.path).read("blk.0.attn_q.weight")
    assert tensor.dtype == "F16"
    assert np.array_equal(values, raw.astype(np.float16)[rotary_pairs(4, 256)])


def test_i2_s_layers(fixtures_dir):
    checkpoint = open_checkpoint(fixtures_dir / "gguf" / "tern-i2_s.gguf")
    with np.load(fixtures_dir / "gguf" / "i2s_ref.npz") as truth:
        for name, layer in checkpoint.layers.items():
            ours = f"{name_in_file(name)}.weight"
            rows = {"q_proj": rotary_pairs(4, 256), "k_proj": rotary_pairs(2, 128)}.get(
                name.rpartition(".")[2], slice(None)
            )
            codes = layer.read()
            assert np.array_equal(codes.codes, truth[f"ternary.{ours}"][rows] + 1)
            assert (codes.scales == truth[f"scale.{ours}"]).all()
    assert len(checkpoint.layers) == 7


def test_a_file_without_a_model(fixtures_dir):
    path = fixtures_dir / "gguf" / "pyquant.gguf"
    message = r'k\.MXFP4: MXFP4 has no exact form: requantize=\("MXFP4",\) rounds it to 4 bits'
    with pytest.raises(FormatError, match=message):
        open_checkpoint(path)
    checkpoint = open_checkpoint(path, requantize=("MXFP4",))
    assert checkpoint.config is None
    with np.load(fixtures_dir / "gguf" / "pyquant_ref.npz") as truth:
        for name, layer in checkpoint.layers.items():
            weight = layer.read().dequantize()
            if name != "k.MXFP4":
                assert np.array_equal(weight, truth[name]), name
        expected = truth["k.MXFP4"].astype(np.float64)
    found = checkpoint.layers["k.MXFP4"].read().dequantize()
    relative = np.sqrt(((found - expected) ** 2).sum() / (expected**2).sum())
    assert checkpoint.errors == {"k.MXFP4": pytest.approx(relative, rel=1e-9)}
    assert 0 < relative < 0.1
    assert open_checkpoint(path, requantize="all").layers.keys() == checkpoint.layers.keys()


def test_what_may_be_requantized(fixtures_dir, tmp_path):
    path = fixtures_dir / "gguf" / "pyquant.gguf"
    with pytest.raises(ValueError, match=r"'Q4_0' has an exact form; choose of .*IQ4_XS"):
        open_checkpoint(path, requantize=("MXFP4", "Q4_0"))
    with pytest.raises(ValueError, match="'Q9' is no type of ggml"):
        open_checkpoint(path, requantize=("Q9",))
    with pytest.raises(ValueError, match="requantize is for GGUF files"):
        open_checkpoint(fixtures_dir / "base256-fp16", requantize="all")


def test_a_model_in_our_own_format(tiny_gguf, tmp_path):
    source = open_checkpoint(tiny_gguf)
    written = write_checkpoint(source, tmp_path / "out")
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(written.companions)
    again = open_checkpoint(tmp_path / "out")
    for name, layer in source.layers.items():
        assert np.array_equal(again.layers[name].read().dequantize(), layer.read().dequantize()), name
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert again.config["model_type"] == "llama"


def split(path, folder, count=2):
    copy = Copy(path)
    names = list(copy.tensors)
    paths = []
    for number in range(count):
        part = Copy(path)
        part.tensors = {name: copy.tensors[name] for name in names[number::count]}
        if number:
            part.keys = {"general.architecture": copy.keys["general.architecture"]}
        kinds = gguf.GGUFValueType
        part.keys |= {
            "split.no": (kinds.UINT16, None, number),
            "split.count": (kinds.UINT16, None, count),
            "split.tensors.count": (kinds.INT32, None, len(names)),
        }
        paths.append(part.write(folder / f"tiny-{number + 1:05}-of-{count:05}.gguf"))
    return paths


def test_a_model_in_several_files(tiny_gguf, tmp_path):
    paths = split(tiny_gguf, tmp_path)
    whole = open_checkpoint(tiny_gguf)
    for path in (*paths, tmp_path):
        parts = open_checkpoint(path)
        assert parts.layers.keys() == whole.layers.keys()
        assert parts.config == whole.config
        for name, layer in whole.layers.items():
            assert np.array_equal(parts.layers[name].read().codes, layer.read().codes), name
    third = tmp_path / "tiny-00003-of-00002.gguf"
    shutil.copy(paths[1], third)
    with pytest.raises(FormatError, match=r"00003-of-00002\.gguf: split\.count: expected a name like"):
        open_checkpoint(third)
    shutil.copy(paths[1], paths[0])
    with pytest.raises(FormatError, match=r"split\.no: expected the number 0 of 2"):
        open_checkpoint(paths[1])
    paths[0].unlink()
    with pytest.raises(FormatError, match=r"expected tiny-00001-of-00002\.gguf beside it"):
        open_checkpoint(paths[1])
    renamed = paths[1].rename(tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match=r"expected a name like model-00001-of-00002\.gguf"):
        open_checkpoint(renamed)


BAD_KEYS = {
    "general.architecture": ("grok", r"expected a model of bitnet, .*, found 'grok'"),
    "llama.block_count": (2**31, "expected a positive number"),
    "llama.attention.head_count": (0, "expected a positive number, found 0"),
    "llama.attention.head_count_kv": (3, "in groups, found 4 and 3"),
    "llama.embedding_length": (64, "expected 32, the columns of token_embd.weight"),
    "llama.feed_forward_length": (65, r"ffn_\w+\.weight: expected shape"),
    "llama.context_length": (0, "expected a positive number"),
    "llama.rope.dimension_count": (4, "expected 8, the size of a head, found 4"),
    "llama.attention.layer_norm_rms_epsilon": (float("nan"), "expected a positive number, found nan"),
    "tokenizer.ggml.eos_token_id": (270, "index of one of 270 tokens, found 270"),
}


@pytest.mark.parametrize("key", BAD_KEYS)
def test_metadata_that_cannot_be(tiny_gguf, tmp_path, key):
    value, message = BAD_KEYS[key]
    copy = Copy(tiny_gguf)
    kind = copy.keys[key][0] if value != 2**31 else gguf.GGUFValueType.UINT64
    copy.keys[key] = (kind, None, value)
    with pytest.raises(FormatError, match=message):
        open_checkpoint(copy.write(tmp_path / "bad.gguf"))


@pytest.mark.parametrize("layers", [3, 1000, 2**40])
def test_more_layers_than_tensors(tiny_gguf, tmp_path, layers):
    copy = Copy(tiny_gguf)
    copy.keys["llama.block_count"] = (gguf.GGUFValueType.UINT64, None, layers)
    with pytest.raises(FormatError, match=r"blk\.2\.\w+\.weight: expected this tensor|block_count: expected"):
        open_checkpoint(copy.write(tmp_path / "bad.gguf"))


def test_experts_without_tensors(tiny_gguf, tmp_path):
    copy = Copy(tiny_gguf)
    kinds = gguf.GGUFValueType
    copy.keys["llama.expert_count"] = (kinds.UINT32, None, 2**30)
    copy.keys["llama.expert_used_count"] = (kinds.UINT32, None, 2)
    with pytest.raises(FormatError, match="at most 65536 experts in all layers"):
        open_checkpoint(copy.write(tmp_path / "bad.gguf"))
    copy.keys["llama.expert_count"] = (kinds.UINT32, None, 4)
    with pytest.raises(FormatError, match="expected only tensors of a mixtral model"):
        open_checkpoint(copy.write(tmp_path / "bad.gguf"))


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "output_norm.weight", "blk.1.attn_k.weight", "blk.0.ffn_norm.weight"]
)
def test_a_tensor_is_missing(tiny_gguf, tmp_path, name):
    copy = Copy(tiny_gguf)
    del copy.tensors[name]
    with pytest.raises(FormatError, match=f"{name}: expected this tensor"):
        open_checkpoint(copy.write(tmp_path / "bad.gguf"))


def test_a_tensor_too_many(tiny_gguf, tmp_path):
    copy = Copy(tiny_gguf)
    copy.tensors["blk.0.attn_q.scale"] = copy.tensors["output_norm.weight"]
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.scale: expected only tensors of a llama model"):
        open_checkpoint(copy.write(tmp_path / "bad.gguf"))


def test_a_tensor_of_a_type_that_nobody_knows(tiny_gguf, tmp_path):
    data = tiny_gguf.read_bytes()
    info = GgufFile(tiny_gguf).info("blk.0.attn_v.weight")
    entry = struct.pack("<I2QI", 2, *info.shape[::-1], info.type_id)
    at = data.index(b"blk.0.attn_v.weight") + len("blk.0.attn_v.weight")
    assert data[at : at + len(entry)] == entry
    path = tmp_path / "bad.gguf"
    path.write_bytes(data[:at] + entry[:-4] + struct.pack("<I", 38) + data[at + len(entry) :])
    with pytest.raises(FormatError, match=r"blk\.0\.attn_v\.weight: expected a type of ggml, found type 38"):
        open_checkpoint(path)


def test_a_bias_that_is_no_number(tmp_path):
    source = tmp_path / "bias.gguf"
    shutil.copy(FAMILIES / "llama_bias.gguf", source)
    info = GgufFile(source).info("blk.0.attn_q.bias")
    data = bytearray(source.read_bytes())
    data[info.offset : info.offset + 4] = struct.pack("<f", np.inf)
    source.write_bytes(data)
    layer = open_checkpoint(source).layers["model.layers.0.self_attn.q_proj"]
    assert layer.bias
    with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.bias: expected finite values"):
        layer.read()
