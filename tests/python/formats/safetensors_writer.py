"""Checkpoints in the form of other tools, written from the formats' rules and not with our own readers."""

import json
from pathlib import Path

import numpy as np

NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "float32": "F32",
}


class Raw:
    """A tensor of a type that numpy has no name for: its bits."""

    def __init__(self, dtype, bits):
        self.dtype, self.bits = dtype, bits


def bfloat16(values):
    """A BF16 tensor of the upper halves of f32 numbers."""
    return Raw("BF16", (np.ascontiguousarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16))


def float32_of(tensor):
    """The values of a float tensor."""
    if isinstance(tensor, Raw):
        return (tensor.bits.astype(np.uint32) << 16).view(np.float32)
    return tensor.astype(np.float32)


def write_model(folder, tensors, quantization=None, config=None):
    """`model.safetensors` and, where there is something to say, `config.json`; returns the folder."""
    header, blobs, at = {}, [], 0
    for name, tensor in tensors.items():
        dtype = tensor.dtype if isinstance(tensor, Raw) else NAMES[str(tensor.dtype)]
        array = tensor.bits if isinstance(tensor, Raw) else tensor
        blobs.append(array.tobytes())
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + len(blobs[-1])]}
        at += len(blobs[-1])
    raw = json.dumps(header).encode()
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(blobs))
    if quantization is not None:
        (folder / "config.json").write_text(json.dumps({**(config or {}), "quantization_config": quantization}))
    return folder


def pack_rows(codes, bits, straddle=True):
    """Unsigned codes [rows, columns] -> i32 [rows, words]: from the lowest bit of each row's first word on.

    Codes straddle words, or the bits of a word that do not hold a whole code stay 0.
    """
    rows, columns = codes.shape
    per_word = 32 // bits
    binary = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    if straddle:
        stream = binary.reshape(rows, columns * bits)
    else:
        padded = np.zeros((rows, -(-columns // per_word) * per_word, bits), np.int64)
        padded[:, :columns] = binary
        stream = np.zeros((rows, padded.shape[1] // per_word, 32), np.int64)
        stream[..., : per_word * bits] = padded.reshape(rows, -1, per_word * bits)
        stream = stream.reshape(rows, -1)
    whole = np.zeros((rows, -(-stream.shape[1] // 32) * 32), np.uint8)
    whole[:, : stream.shape[1]] = stream
    return np.packbits(whole, axis=1, bitorder="little").view("<i4")
