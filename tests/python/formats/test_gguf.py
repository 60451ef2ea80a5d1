import struct

import gguf
import numpy as np
import pytest

from tmac.formats import FormatError
from tmac.formats.gguf import GgufFile, llama_name, unpermute_rows

U32, U64 = "<I", "<Q"


def text(value):
    data = value.encode()
    return struct.pack(U64, len(data)) + data


def make_file(path, keys=b"", num_keys=0, tensors=b"", num_tensors=0, version=3, data=b""):
    """A GGUF file from raw parts."""
    head = b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + keys + tensors
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


def tensor_info(name, shape, kind, offset=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def data_end(path):
    return max(info.offset + info.nbytes for info in GgufFile(path).tensors.values())


def test_agrees_with_the_gguf_package(tiny_gguf):
    ours, theirs = GgufFile(tiny_gguf), gguf.GGUFReader(tiny_gguf)
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            expected = field.contents()
            assert (
                list(ours.metadata[key]) == expected if isinstance(expected, list) else ours.metadata[key] == expected
            )
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        assert ours.info(tensor.name).shape == tuple(tensor.shape[::-1].tolist())
        np.testing.assert_array_equal(ours.read(tensor.name), gguf.dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "TQ1_0", "BF16", "F16", "F64"])
def test_reads_other_types_in_pieces(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("tmac.formats.gguf.CHUNK_ELEMENTS", 1024)
    weight = np.random.default_rng(0).standard_normal((2, 5, 256)).astype(np.float32)
    writer = gguf.GGUFWriter(tmp_path / "types.gguf", "test")
    if kind == "F64":
        expected, raw, raw_type = weight, weight.astype(np.float64), None
    else:
        raw_type = gguf.GGMLQuantizationType[kind]
        raw = gguf.quants.quantize(weight, raw_type)
        expected = gguf.quants.dequantize(raw, raw_type)
    writer.add_tensor("weight", raw, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.testing.assert_array_equal(GgufFile(tmp_path / "types.gguf").read("weight"), expected)


def test_metadata_of_every_kind(tmp_path):
    array = (
        struct.pack("<IIQ", 9, 9, 2)
        + struct.pack("<IQ", 4, 1)
        + struct.pack(U32, 7)
        + struct.pack("<IQ", 8, 1)
        + text("x")
    )
    values = [(0, b"\x07", 7), (5, struct.pack("<i", -3), -3), (6, struct.pack("<f", 0.5), 0.5), (7, b"\x01", True)]
    keys = b"".join(text(f"k{kind}") + struct.pack(U32, kind) + raw for kind, raw, _ in values)
    path = make_file(tmp_path / "kinds.gguf", keys + text("nested") + array, len(values) + 1)
    metadata = GgufFile(path).metadata
    assert [list(inner) for inner in metadata["nested"]] == [[7], ["x"]]
    for kind, _, value in values:
        assert metadata[f"k{kind}"] == value
        assert type(metadata[f"k{kind}"]) is type(value)


def test_every_truncation_is_a_format_error(tiny_gguf, tmp_path):
    data, end = tiny_gguf.read_bytes(), data_end(tiny_gguf)
    start = min(info.offset for info in GgufFile(tiny_gguf).tensors.values())
    path = tmp_path / "short.gguf"
    for length in [*range(start), *range(start, end, 41), end - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"short\.gguf"):
            GgufFile(path)
    path.write_bytes(data[:end])
    assert GgufFile(path).tensors


def test_a_file_that_shrinks_while_it_is_open(tiny_gguf, tmp_path):
    path = tmp_path / "shrinks.gguf"
    path.write_bytes(tiny_gguf.read_bytes())
    file = GgufFile(path)
    path.write_bytes(tiny_gguf.read_bytes()[: file.info("output_norm.weight").offset])
    with pytest.raises(FormatError, match="became shorter"):
        file.read("output_norm.weight")


HUGE = 2**63 - 1
BAD_FILES = {
    "not a GGUF file": {"raw": b"PK\x03\x04" + bytes(60)},
    "version": {"version": 1},
    "version 2 or 3 in little-endian": {"version": 3 << 24},
    "tensors do not fit": {"num_tensors": HUGE},
    "metadata keys do not fit": {"num_keys": HUGE},
    "array elements do not fit": {"keys": text("a") + struct.pack("<IIQ", 9, 0, HUGE), "num_keys": 1},
    "9223372036854775807 array elements": {"keys": text("a") + struct.pack("<IIQ", 9, 8, HUGE), "num_keys": 1},
    "more bytes, but the file ends": {"keys": text("a") + struct.pack("<IQ", 8, 1000), "num_keys": 1},
    "1000 more bytes, but": {"keys": text("a") + struct.pack("<IIQQ", 9, 8, 1, 1000), "num_keys": 1},
    "at most 16777216 bytes, found 9": {"keys": text("a") + struct.pack("<IQ", 8, HUGE), "num_keys": 1},
    "at most 16777216 bytes": {"keys": text("a") + struct.pack("<IIQQ", 9, 8, 1, HUGE), "num_keys": 1},
    "at most 65536 array elements": {
        "keys": text("a") + struct.pack("<IIQ", 9, 9, 65537) + bytes(1 << 20),
        "num_keys": 1,
    },
    "at most 65536 tensors": {"num_tensors": 65537, "data": bytes(1 << 21)},
    "at most 65535 bytes": {"keys": struct.pack(U64, HUGE) + bytes(64), "num_keys": 1},
    "value type of 0 to 12, found 77": {"keys": text("a") + struct.pack("<IQ", 77, 0), "num_keys": 1},
    "nested arrays": {"keys": text("a") + struct.pack(U32, 9) + struct.pack("<IQ", 9, 1) * 6, "num_keys": 1},
    "found it twice": {"keys": (text("a") + struct.pack("<IB", 0, 1)) * 2, "num_keys": 2},
    "UTF-8": {"keys": struct.pack(U64, 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1), "num_keys": 1},
    "power of two": {"keys": text("general.alignment") + struct.pack("<II", 4, 0), "num_keys": 1},
    "dimensions, found 9": {"tensors": tensor_info("t", [1] * 9, 0), "num_tensors": 1},
    "without zeros": {"tensors": tensor_info("t", [2**40, 0], 0), "num_tensors": 1},
    "but the file has": {"tensors": tensor_info("t", [2**62, 2**62], 0), "num_tensors": 1},
    "t: expected data in bytes": {"tensors": tensor_info("t", [4], 0, 2**64 - 8), "num_tensors": 1},
    "multiple of 32 for Q4_0": {"tensors": tensor_info("t", [33], 2), "num_tensors": 1},
    "found two": {"tensors": tensor_info("t", [4], 0) * 2, "num_tensors": 2, "data": bytes(32)},
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_file(tmp_path, message):
    parts = dict(BAD_FILES[message])
    path = tmp_path / "bad.gguf"
    if "raw" in parts:
        path.write_bytes(parts["raw"])
    else:
        make_file(path, **parts)
    with pytest.raises(FormatError, match=message) as raised:
        GgufFile(path)
    assert str(path) in str(raised.value)


def test_one_unknown_type_does_not_spoil_the_file(tmp_path):
    tensors = tensor_info("known", [4], 0) + tensor_info("unknown", [32], 38, 32) + tensor_info("i8", [32], 24, 32)
    data = np.arange(16, dtype=np.float32).tobytes()
    file = GgufFile(make_file(tmp_path / "i2.gguf", tensors=tensors, num_tensors=3, data=data))
    assert file.read("known").tolist() == [0, 1, 2, 3]
    with pytest.raises(FormatError, match=r"unknown: .*found type 38"):
        file.read("unknown")
    with pytest.raises(FormatError, match=r"i8: I8 cannot be dequantized"):
        file.read("i8")
    with pytest.raises(FormatError, match=r"other: expected this tensor"):
        file.read("other")


def test_values_of_the_wrong_type(tiny_gguf):
    file = GgufFile(tiny_gguf)
    with pytest.raises(FormatError, match=r"llama\.block_count: expected str, found int"):
        file.get("llama.block_count", str)
    with pytest.raises(FormatError, match=r"nothing: expected this metadata key"):
        file.get("nothing", int)
    assert file.get("nothing", int, 3) == 3
    assert file.get("llama.block_count", float) == 2.0


def test_infinite_scales_are_passed_on(tmp_path):
    block = struct.pack("<e", np.inf) + bytes([0, 1, 255] + [1] * 29)
    path = make_file(tmp_path / "inf.gguf", tensors=tensor_info("t", [32], 8), num_tensors=1, data=block)
    values = GgufFile(path).read("t")
    assert np.isnan(values[0])
    assert values[1] == np.inf
    assert values[2] == -np.inf


def test_unpermute_is_the_inverse_of_the_converter():
    heads, weight = 3, np.arange(24 * 5, dtype=np.float32).reshape(24, 5)
    permuted = weight.reshape(heads, 2, 4, 5).swapaxes(1, 2).reshape(24, 5)  # convert_hf_to_gguf.py, LlamaModel.permute
    np.testing.assert_array_equal(unpermute_rows(permuted, heads), weight)


def test_names():
    assert llama_name("blk.07.attn_q.bias") == "model.layers.7.self_attn.q_proj.bias"
    assert llama_name("output.weight") == "lm_head.weight"
    assert llama_name("blk.0.ffn_gate_inp.weight") is None
    assert llama_name("rope_freqs.weight") is None
    assert llama_name(f"blk.{'9' * 5000}.attn_q.weight") is None  # more digits than int() takes
