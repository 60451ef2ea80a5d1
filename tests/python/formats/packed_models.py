"""Writes GPTQ, AWQ and AutoRound checkpoints from codes, by the rules of their formats and one bit at a time."""

import json

import numpy as np

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
PLANES = {3: [(2, 0), (1, 2)], 5: [(4, 0), (1, 4)], 6: [(4, 0), (2, 4)], 7: [(4, 0), (2, 4), (1, 6)]}
DTYPES = {"float16": "F16", "float32": "F32", "int32": "I32", "int64": "I64", "uint16": "BF16", "float64": "F64"}


def stream(codes, bits):
    """Each row's codes, least significant bits first, in 32-bit words."""
    spread = (codes[:, :, None] >> np.arange(bits)) & 1
    spread = spread.reshape(len(codes), -1).astype(np.uint8)
    spread = np.pad(spread, ((0, 0), (0, -spread.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(spread, axis=1, bitorder="little")).view("<i4")


def planar(codes, bits):
    """gptq_p: 32 codes of each row become the words of their low bits, then those of the higher ones."""
    if bits not in PLANES:
        return stream(codes, bits)
    blocks = codes.reshape(len(codes), -1, 32)
    words = [
        np.concatenate([stream((block >> shift) & (2**width - 1), width) for width, shift in PLANES[bits]], axis=1)
        for block in blocks.transpose(1, 0, 2)
    ]
    return np.concatenate(words, axis=1)


def less_one(zeros, bits):
    """v1's zeros `[groups, n]`: one is taken from every field of a packed word, with borrows where fields fill it."""
    if bits == 3:
        return stream((zeros - 1) % 8, 3)
    ones = sum(1 << shift for shift in range(0, 32, bits))
    return (stream(zeros, bits).view(np.uint32) - np.uint32(ones)).view(np.int32)


def gptq_tensors(name, codes, zeros, scales, bits, *, pack=stream, pack_zeros=less_one, **others):
    """codes `[n, k]`, zeros and scales `[n, groups]`; others are g_idx and bias."""
    tensors = {
        "qweight": np.ascontiguousarray(pack(codes, bits).T),
        "qzeros": pack_zeros(np.ascontiguousarray(zeros.T), bits),
        "scales": np.ascontiguousarray(scales.T),
        **others,
    }
    return {f"{name}.{part}": array for part, array in tensors.items() if array is not None}


def awq_tensors(name, codes, zeros, scales, bits=4, **others):
    """The same in AWQ's order."""

    def pack(columns):  # [n, anything]
        eights = columns.reshape(-1, 8, columns.shape[1])[:, AWQ_ORDER].reshape(columns.shape)
        return stream(np.ascontiguousarray(eights.T), bits)

    tensors = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": np.ascontiguousarray(scales.T), **others}
    return {f"{name}.{part}": array for part, array in tensors.items() if array is not None}


def to_bf16(values):
    """The upper halves of f32 values."""
    return (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_file(path, tensors):
    """A safetensors file; u16 arrays are bf16."""
    header, at = {}, 0
    for name, array in tensors.items():
        end = at + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(array.tobytes() for array in tensors.values()))


def write_model(folder, tensors, quantization, shards=1):
    """A folder with config.json and the tensors, spread over so many files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_type": "llama", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        write_file(folder / "model.safetensors", tensors)
        return folder
    names = [f"model-{index + 1:05}-of-{shards:05}.safetensors" for index in range(shards)]
    places = {name: names[index % shards] for index, name in enumerate(tensors)}
    for file in names:
        write_file(folder / file, {name: tensors[name] for name in tensors if places[name] == file})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def weight_of(codes, zeros, scales, group_of):
    """f32 `[n, k]`: the formula of all three formats."""
    difference = codes.astype(np.float32) - zeros[:, group_of].astype(np.float32)
    return difference * scales[:, group_of].astype(np.float32)


def random_layer(rng, n, k, bits, group_size, sym=False):
    """codes, zeros, scales (f16) of a random layer."""
    groups = 1 if group_size == -1 else -(-k // group_size)
    codes = rng.integers(0, 2**bits, (n, k))
    zeros = np.full((n, groups), 2 ** (bits - 1)) if sym else rng.integers(0, 2**bits, (n, groups))
    return codes, zeros, rng.standard_normal((n, groups)).astype(np.float16)


def random_groups(rng, k, group_size):
    """The g_idx of a model quantized with desc_act: columns in a random order are cut into groups."""
    group_of = np.empty(k, np.int32)
    group_of[rng.permutation(k)] = np.arange(k) // (k if group_size == -1 else group_size)
    return group_of
