"""Blocks of every type against the gguf package's arithmetic, bit for bit, and against ggml's C where it has none."""

import gguf
import numpy as np
import pytest

from tmac.formats import FormatError
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_blocks import EXACT_TYPES
from tmac.formats.gguf_floats import can_dequantize
from tmac.formats.gguf_types import PLAIN, TYPE_NAMES, TYPES
from tmac.formats.gguf_weights import Matrix, nearest_spec, read_exact, requantize

# Where the f16 values of a block lie.
HALVES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q1_0": [0],
    "Q2_0": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
# Of ours alone: gguf 0.19 has the block size of Q1_0 and nothing else of these.
WITHOUT_REFERENCE = {"Q1_0", "Q2_0", "I2_S"}
INEXACT = [
    name for name in sorted(TYPE_NAMES) if name not in EXACT_TYPES and name not in PLAIN and can_dequantize(name)
]


def bits_of(values):
    return values.astype(np.float32, copy=False).view(np.uint32)


def random_blocks(name, rows, columns, seed=0):
    """Any bytes, but finite f16 values, and no fourth code in a ternary type."""
    kind, rng = TYPE_NAMES[name], np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // kind.block, kind.block_bytes), np.uint8)
    if name == "TQ2_0":
        low = blocks & 0x55
        blocks &= ~(low << 1)  # no 3 in any field of two bits
    for column in HALVES.get(name, []):
        exponent = blocks[:, column + 1] & 0x7C
        blocks[exponent == 0x7C, column + 1] &= 0xBF
    return blocks


def write(path, name, blocks, shape, tail=b""):
    """A file with one tensor `weight`."""
    writer = gguf.GGUFWriter(path, "test")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    data[8:16] = (1).to_bytes(8, "little")
    data += (6).to_bytes(8, "little") + b"weight" + len(shape).to_bytes(4, "little")
    for size in reversed(shape):
        data += size.to_bytes(8, "little")
    data += TYPE_NAMES[name].id.to_bytes(4, "little") + bytes(8)
    path.write_bytes(bytes(data) + bytes(-len(data) % 32) + blocks.tobytes() + tail)
    return GgufFile(path)


def matrix(file, **changes):
    info = file.info("weight")
    return Matrix(file, info, *info.shape[-2:], **changes)


def test_the_table_agrees_with_the_gguf_package():
    for kind in gguf.GGMLQuantizationType:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        ours = TYPES[int(kind)]
        assert (ours.name, ours.block) == (kind.name, block)
        if kind.name != "Q8_1":  # two f16 and 32 bytes in ggml-common.h; 40 bytes in that package
            assert ours.block_bytes == block_bytes, kind.name


@pytest.mark.parametrize("name", [name for name in EXACT_TYPES if name not in WITHOUT_REFERENCE])
def test_values_have_the_bits_that_the_package_computes(tmp_path, name):
    shape = (6, 1536)
    blocks = random_blocks(name, *shape, seed=4)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(shape)
    assert np.array_equal(bits_of(write(tmp_path / "t.gguf", name, blocks, shape).read("weight")), bits_of(expected))


@pytest.mark.parametrize("name", [name for name in EXACT_TYPES if name not in WITHOUT_REFERENCE])
def test_codes_have_the_bits_that_the_package_computes(tmp_path, name):
    shape = (6, 1536)
    blocks = random_blocks(name, *shape)
    file = write(tmp_path / "t.gguf", name, blocks, shape)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(shape)
    assert np.array_equal(bits_of(file.read("weight")), bits_of(expected))
    codes = read_exact(matrix(file))
    assert np.array_equal(bits_of(codes.dequantize()), bits_of(expected))
    assert codes.spec == EXACT_TYPES[name].spec


@pytest.mark.parametrize("name", [name for name in EXACT_TYPES if name not in WITHOUT_REFERENCE])
def test_reads_in_pieces_and_rows_in_another_order(tmp_path, monkeypatch, name):
    monkeypatch.setattr("tmac.formats.gguf.CHUNK_ELEMENTS", 512)
    shape, rows = (3, 5, 512), np.array([4, 0, 3, 1, 2])
    blocks = random_blocks(name, 15, 512, seed=1)
    file = write(tmp_path / "t.gguf", name, blocks, shape)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(shape)
    assert np.array_equal(bits_of(file.read("weight")), bits_of(expected))
    for index in range(3):
        codes = read_exact(matrix(file, index=index, rows=rows))
        assert np.array_equal(bits_of(codes.dequantize()), bits_of(expected[index][rows])), index


def reference_q1_0(block):
    """dequantize_row_q1_0 of ggml-quants.c."""
    scale = np.float32(np.frombuffer(block[:2].tobytes(), "<f2")[0])
    return [scale if block[2 + j // 8] >> (j % 8) & 1 else -scale for j in range(128)]


def reference_q2_0(block):
    """dequantize_row_q2_0 of ggml-quants.c."""
    scale = np.float32(np.frombuffer(block[:2].tobytes(), "<f2")[0])
    return [np.float32(int(block[2 + j // 4] >> (j % 4 * 2) & 3) - 1) * scale for j in range(64)]


@pytest.mark.parametrize(("name", "reference"), [("Q1_0", reference_q1_0), ("Q2_0", reference_q2_0)])
def test_types_newer_than_the_package(tmp_path, name, reference):
    shape = (4, 256)
    blocks = random_blocks(name, *shape)
    blocks[0, :2] = np.frombuffer(np.float16(65504).tobytes(), np.uint8)  # whose double is no f16
    expected = np.array([reference(block) for block in blocks], np.float32).reshape(shape)
    file = write(tmp_path / "t.gguf", name, blocks, shape)
    assert np.array_equal(bits_of(file.read("weight")), bits_of(expected))
    codes = read_exact(matrix(file))
    assert np.array_equal(bits_of(codes.dequantize()), bits_of(expected))
    assert codes.spec.scale_format == ("f32" if name == "Q1_0" else "f16")
    assert codes.spec.replace(scale_format="f16") == EXACT_TYPES[name].spec


@pytest.mark.parametrize("columns", [256, 192])  # of 192, blocks do not end with the rows
def test_i2_s(tmp_path, columns):
    shape, scale = (6, columns), np.float32(0.3)
    signs = np.random.default_rng(3).integers(-1, 2, shape)
    flat = (signs.reshape(-1, 4, 32) + 1).astype(np.uint8)
    blocks = flat[:, 0] << 6 | flat[:, 1] << 4 | flat[:, 2] << 2 | flat[:, 3]
    file = write(tmp_path / "t.gguf", "I2_S", blocks, shape, scale.tobytes() + b"\xff" * 28)
    expected = signs.astype(np.float32) * scale
    assert np.array_equal(file.read("weight"), expected)
    codes = read_exact(matrix(file))
    assert np.array_equal(codes.dequantize(), expected)
    assert codes.scales.shape == (6, 1)
    assert (codes.spec.codebook, codes.spec.group_size, codes.spec.activation) == ("ternary", -1, "token")


@pytest.mark.parametrize("name", [name for name in EXACT_TYPES if name != "I2_S"])
@pytest.mark.parametrize("half", [b"\x00\x7c", b"\x01\xfe", b"\x01\x7c"], ids=["inf", "nan", "snan"])
def test_scales_that_are_no_numbers(tmp_path, name, half):
    shape = (2, 256)
    for column in HALVES[name]:
        blocks = random_blocks(name, *shape)
        blocks[-1, column : column + 2] = np.frombuffer(half, np.uint8)
        file = write(tmp_path / "t.gguf", name, blocks, shape)
        with pytest.raises(FormatError, match=rf"t\.gguf: weight: expected finite scales and codes of {name} \(.*NaN"):
            read_exact(matrix(file))


@pytest.mark.parametrize("name", ["TQ2_0", "I2_S"])
def test_a_fourth_ternary_code(tmp_path, name):
    blocks = np.zeros((4 if name == "I2_S" else 2, TYPE_NAMES[name].block_bytes), np.uint8)
    blocks[1, 5] = 0xC0
    tail = np.float32(1).tobytes() + bytes(28) if name == "I2_S" else b""
    file = write(tmp_path / "t.gguf", name, blocks, (2, 256), tail)
    with pytest.raises(FormatError, match=r"weight: .*a code is 3"):
        read_exact(matrix(file))


def test_i2_s_whose_scale_is_no_number(tmp_path):
    blocks = np.zeros((2, 32), np.uint8)
    file = write(tmp_path / "t.gguf", "I2_S", blocks, (1, 256), np.float32(np.nan).tobytes() + bytes(28))
    with pytest.raises(FormatError, match=r"weight: .*NaN or Inf in scales"):
        read_exact(matrix(file))


def test_nearest_specs():
    bits = {name: nearest_spec(TYPE_NAMES[name]).bits for name in INEXACT}
    assert bits == {
        **dict.fromkeys(("IQ1_M", "IQ1_S", "IQ2_S", "IQ2_XS", "IQ2_XXS"), 2),
        **dict.fromkeys(("IQ3_S", "IQ3_XXS"), 3),
        **dict.fromkeys(("IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4"), 4),
    }
    for name in INEXACT:
        spec = nearest_spec(TYPE_NAMES[name])
        assert spec.bits + 32 / spec.group_size >= TYPE_NAMES[name].bits


@pytest.mark.parametrize("name", INEXACT)
def test_requantize(tmp_path, name):
    shape, rows = (4, 512), np.array([2, 3, 0, 1])
    kind = TYPE_NAMES[name]
    blocks = random_blocks(name, *shape, seed=2)
    if name == "MXFP4":
        blocks[:, 0] = 120 + blocks[:, 0] % 8
    else:
        blocks[:, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        if name == "IQ1_M":  # its f16 scale is spread over the highest four bits of the last four words
            blocks[:, -8:].view("<u2")[:] &= 0x0FFF
            blocks[:, -1] |= 0x20
        if name == "NVFP4":
            blocks[:, :4] = 0x30
    file = write(tmp_path / "t.gguf", name, blocks, shape)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).reshape(shape)
    assert np.isfinite(expected).all()
    errors = []
    codes = requantize(matrix(file, rows=rows), nearest_spec(kind), None, errors.append)
    difference = codes.dequantize().astype(np.float64) - expected[rows]
    relative = np.sqrt((difference**2).sum() / (expected.astype(np.float64) ** 2).sum())
    assert errors == [pytest.approx(relative, rel=1e-12)]
    # A group of 32 needs at most half a step of its range: range / (2**bits - 1) / 2 in every element.
    groups = expected[rows].reshape(-1, 32)
    step = (groups.max(1) - groups.min(1)) / (2**codes.spec.bits - 1)
    assert relative <= np.sqrt((32 * (step / 2) ** 2).sum() / (groups.astype(np.float64) ** 2).sum())
