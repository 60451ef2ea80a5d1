"""Damages checkpoints, and reads whatever there is in one."""

import json
import math
import struct

import numpy as np

from tmac import FormatError, UnsupportedSpecError
from tmac.formats import open_checkpoint
from tmac.formats.safetensors_file import DTYPES as STORED

REFUSALS = (FormatError, UnsupportedSpecError, OSError)
INTEGERS = (
    *(0, 1, 2, 3, 5, 7, 8, 16, 31, 33, 63, 64, 65, 128, 255, 256, -1, -2),
    *(2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63),
)
VALUES = (
    *INTEGERS, 2**64, -(2**63), 10**400, None, True, False, "", "x", "../x", "/x", "model.safetensors", "gptq", "tmac",
    "weird\0name", 0.5, -0.0, 1e308, math.inf, math.nan, [], {}, [1], [[]], {"": {}}, [[[[[[[[]]]]]]]], "y" * 5000,
)  # fmt: skip
DTYPES = ("U8", "I8", "BOOL", "F16", "BF16", "F32", "F64", "I32", "I64", "U64", "F8_E4M3", "F4", "", "i32")
SIZES = {"U8": 1, "I8": 1, "BOOL": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "I32": 4}
SIZES |= {"F64": 8, "I64": 8, "U64": 8}
LARGEST = 1 << 16


class RandomChoice:
    """Choices from a `random.Random`."""

    def __init__(self, random):
        self.below = random.randrange

    def of(self, values):
        return values[self.below(len(values))]


def read_everything(path):
    """Opens a checkpoint and reads every weight; what a reader promises in its headers must be what it gives."""
    checkpoint = open_checkpoint(path)
    for name, layer in checkpoint.layers.items():
        codes = layer.read()
        assert layer.name == name
        assert codes.codes.shape == (layer.out_features, layer.in_features)
        assert (codes.bias is not None) == layer.bias
        for key in ("bits", "group_size", "codebook", "activation"):
            assert getattr(codes.spec, key) == getattr(layer.spec, key)
    for name, tensor in checkpoint.tensors.items():
        array = tensor.read()
        assert tensor.name == name
        assert array.shape == tensor.shape
        assert array.itemsize == np.dtype(STORED.get(tensor.dtype, "u1")).itemsize
    return checkpoint


def read_or_refuse(path):
    """Whether a checkpoint could be read; any other exception than a refusal is a fault."""
    try:
        read_everything(path)
    except REFUSALS:
        return False
    return True


def damaged(files, choice):
    """A copy of {name: bytes} with one to three things wrong."""
    files = dict(files)
    for _ in range(1 + choice.below(3)):
        name = choice.of(sorted(files))
        kinds = [cut, flip, flip]
        kinds += [edit_header] * 6 if name.endswith(".safetensors") else []
        kinds += [edit_json] * 6 if name.endswith(".json") else []
        kinds += [edit_gguf] * 6 if name.endswith(".gguf") else []
        files[name] = choice.of(kinds)(files[name], choice)
    return files


def cut(raw, choice):
    return raw[: choice.below(len(raw) + 1)]


def flip(raw, choice):
    changed = bytearray(raw)
    for _ in range(1 + choice.below(4)):
        if changed:
            changed[choice.below(len(changed))] = choice.below(256)
    return bytes(changed)


def parse(raw):
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def edit_json(raw, choice):
    """One value of a JSON tree replaced, dropped, written twice or added."""
    tree = parse(raw)
    if not isinstance(tree, dict) or not tree:
        return raw
    places = list(containers(tree))
    parent = choice.of(places)
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    if not keys:
        return raw
    key, value = choice.of(keys), choice.of(VALUES)
    action = choice.below(6)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, dict):
        text = json.dumps(tree)
        return text.replace(f"{json.dumps(key)}: ", f"{json.dumps(key)}: 1, {json.dumps(key)}: ", 1).encode()
    elif action == 2 and isinstance(parent, dict):
        parent[str(value)[:50]] = parent[key]
    else:
        parent[key] = value
    return json.dumps(tree).encode()


def containers(tree):
    yield tree
    for value in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(value, (dict, list)):
            yield from containers(value)


def split(raw):
    """Header and data of a safetensors file, or None."""
    length = int.from_bytes(raw[:8], "little")
    header = parse(raw[8 : 8 + length]) if length <= len(raw) else None
    return (header, raw[8 + length :]) if isinstance(header, dict) else None


def join(header, data):
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def edit_header(raw, choice):
    """A tensor dropped, renamed, filled, or of another type or shape; data and offsets follow, or do not."""
    parts = split(raw)
    names = [name for name, entry in parts[0].items() if is_entry(entry, len(parts[1]))] if parts else []
    if not names:
        return raw
    header, data = parts
    if choice.below(8) == 0:
        return edit_length(join(header, data), choice)
    name = choice.of(names)
    entry = header[name]
    action = choice.below(7)
    blobs = {each: data[slice(*header[each]["data_offsets"])] for each in names}
    if action == 0:
        del header[name]
    elif action == 1:
        other = choice.of([*names, "x", "", f"{name}.planes", f"{name}.qweight", "a" * 3000])
        header[other], blobs[other] = header.pop(name), blobs[name]
    elif action == 2:
        blobs[name] = choice.of([b"\0", b"\xff", b"\x7f", b"\x80", b"\x01"]) * len(blobs[name])
    elif action == 3:
        entry["dtype"] = choice.of(DTYPES)
    elif action == 4:
        entry["data_offsets"] = [choice.of(INTEGERS), choice.of(INTEGERS)]
    elif action == 5:
        entry[choice.of(["dtype", "shape", "data_offsets", "extra"])] = choice.of(VALUES)
    elif entry["shape"]:
        entry["shape"][choice.below(len(entry["shape"]))] = choice.of(INTEGERS)
    else:
        entry["shape"] = [choice.of(INTEGERS)]
    return laid_out(header, blobs) if action < 3 or choice.below(3) else join(header, data)


def is_entry(entry, size):
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("shape"), list)
        and isinstance(entry.get("data_offsets"), list)
        and len(entry["data_offsets"]) == 2
        and all(type(each) is int and 0 <= each <= size for each in entry["data_offsets"])
    )


def edit_length(raw, choice):
    return struct.pack("<Q", choice.of(INTEGERS) & (2**64 - 1)) + raw[8:]


def laid_out(header, blobs):
    """Offsets and data that fit the types and shapes, as far as these mean anything."""
    data = b""
    for name, entry in header.items():
        blob = blobs.get(name)
        if blob is None or not isinstance(entry, dict):
            continue
        nbytes = wanted_bytes(entry.get("shape"), entry.get("dtype"))
        if 0 <= nbytes <= LARGEST:
            blob = (blob * (nbytes // max(len(blob), 1) + 1))[:nbytes] if blob else bytes(nbytes)
        if "data_offsets" in entry:
            entry["data_offsets"] = [len(data), len(data) + len(blob)]
        data += blob
    return join(header, data)


def wanted_bytes(shape, dtype):
    """What a tensor takes; -1 where that means nothing."""
    if not isinstance(shape, list) or not all(type(each) is int for each in shape):
        return -1
    return math.prod(shape) * SIZES[dtype] if isinstance(dtype, str) and dtype in SIZES else -1


def edit_gguf(raw, choice):
    """A number of 1, 2, 4 or 8 bytes in the header, or a block of data, overwritten."""
    changed = bytearray(raw)
    if choice.below(3) == 0:
        at = choice.below(len(raw) + 1)
        changed[at : at + 64] = choice.of([b"\0", b"\xff", b"\x7c", b"\x7e"]) * len(changed[at : at + 64])
        return bytes(changed)
    width = choice.of([1, 2, 4, 8])
    at = choice.below(min(len(raw), 2000) + 1)
    number = (choice.of(INTEGERS) & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    changed[at : at + width] = number[: len(changed[at : at + width])]
    return bytes(changed)
