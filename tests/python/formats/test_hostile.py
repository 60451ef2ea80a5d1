"""Damaged and hostile checkpoints are refused with an error that names what is wrong, in bounded time and memory."""

import importlib.util
import json
import os
import random
import tracemalloc

import numpy as np
import pytest
from hostile import RandomChoice, damaged, join, laid_out, read_everything, read_or_refuse, split
from small_checkpoints import FORMATS, LAYER, write_files

from tmac import FormatError
from tmac.formats import READERS, open_checkpoint
from tmac.formats.json_file import MAX_DEPTH, MAX_ITEMS, parse_json

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX files")
MODULES = {**READERS, "float": "float_file", "gguf": "gguf_checkpoint"}
NAMES = [name for name in FORMATS if importlib.util.find_spec(f"tmac.formats.{MODULES[name]}")]
PACKED = [name for name in NAMES if name not in ("float", "gguf")]


@pytest.fixture(scope="module")
def samples():
    return {name: FORMATS[name]() for name in NAMES}


@pytest.fixture
def memory():
    """`memory(work, size)` runs `work()`, which may take twice `size` bytes and 64 MiB."""

    def measure(work, size):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = work()
        peak = tracemalloc.get_traced_memory()[1] - before
        assert peak <= 2 * size + (64 << 20), f"{peak} bytes for {size}"
        return result

    tracemalloc.start()
    yield measure
    tracemalloc.stop()


def edited(files, change):
    """The files with `change(header, {name: data})` applied to the tensors; offsets follow."""
    header, data = split(files["model.safetensors"])
    blobs = {name: data[slice(*entry["data_offsets"])] for name, entry in header.items() if name != "__metadata__"}
    change(header, blobs)
    return {**files, "model.safetensors": laid_out(header, blobs)}


@pytest.mark.parametrize("name", NAMES)
def test_the_small_checkpoints_are_read(samples, name, tmp_path):
    for index, files in enumerate(samples[name]):
        found = read_everything(write_files(tmp_path / str(index), files))
        assert found.format == name
        assert bool(found.layers) == (name != "float")


@pytest.mark.parametrize("name", NAMES)
def test_cut_files(samples, name, tmp_path, test_budget):
    """Every cut of the header (every few bytes of a long one), and cuts all over the data."""
    files = samples[name][0]
    weights = "model.gguf" if name == "gguf" else "model.safetensors"
    raw = files[weights]
    header = min(2000, len(raw)) if name == "gguf" else len(raw) - len(split(raw)[1])
    folder = write_files(tmp_path, files)
    cuts = {*range(0, header, max(1, round(header / 400 / test_budget))), header, len(raw) - 1}
    cuts |= {*range(header, len(raw), max(1, round((len(raw) - header) / 60 / test_budget)))}
    for size in sorted(cuts - {len(raw)}):
        (folder / weights).write_bytes(raw[:size])
        assert not read_or_refuse(folder), f"cut after {size} of {len(raw)} bytes"
    for other in files.keys() - {weights}:
        write_files(folder, files)
        for size in range(0, len(files[other]), 7):
            (folder / other).write_bytes(files[other][:size])
            read_or_refuse(folder)


@pytest.mark.parametrize("name", NAMES)
def test_damage_at_random(samples, name, tmp_path, test_budget, memory):
    read = 0
    for seed in range(round(200 * test_budget)):
        choice = RandomChoice(random.Random(f"{name} {seed}"))
        files = damaged(choice.of(samples[name]), choice)
        folder = tmp_path / str(seed)
        size = sum(map(len, files.values()))
        read += memory(lambda: read_or_refuse(write_files(folder, files)), size)  # noqa: B023
    assert 0 < read < round(200 * test_budget)


def refusal(folder, *words):
    """The text of the FormatError that a checkpoint raises, which names the words."""
    with pytest.raises(FormatError) as caught:
        read_everything(folder)
    text = str(caught.value)
    for word in words:
        assert word in text
    assert len(text) < 1500 + len(str(folder))
    return text


@pytest.mark.parametrize("size", [2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 1 << 27])
@pytest.mark.parametrize("name", PACKED)
def test_header_sizes(samples, name, size, tmp_path, memory):
    files = samples[name][0]
    raw = size.to_bytes(8, "little") + files["model.safetensors"][8:]
    folder = write_files(tmp_path, {**files, "model.safetensors": raw})
    memory(lambda: refusal(folder, "model.safetensors"), len(raw))


@pytest.mark.parametrize("number", [2**31, 2**63 - 1, 2**63, 2**64, 10**400, -1, 0.5, True, None, "1", [1]])
@pytest.mark.parametrize("place", ["shape", "begin", "end"])
def test_numbers_in_headers(samples, number, place, tmp_path, memory):
    files = samples["tmac"][0]
    header, data = split(files["model.safetensors"])
    name, entry = next((name, entry) for name, entry in header.items() if name.endswith(".planes"))
    if place == "shape":
        entry["shape"][1] = number
    else:
        entry["data_offsets"][place == "end"] = number
    folder = write_files(tmp_path, {**files, "model.safetensors": join(header, data)})
    memory(lambda: refusal(folder, "model.safetensors", name), len(data))


def test_overlaps_holes_and_trailing_bytes(samples, tmp_path):
    files = samples["tmac"][0]
    header, data = split(files["model.safetensors"])
    names = [name for name in header if name != "__metadata__" and header[name]["data_offsets"][1]]
    first, second = names[:2]
    begin, end = header[first]["data_offsets"]
    swapped = {**header, second: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}}
    hole = {name: entry for name, entry in header.items() if name != names[1]}
    for index, (wrong, content) in enumerate(((swapped, data), (hole, data), (header, data + b"\0"))):
        raw = join(wrong, content)
        refusal(write_files(tmp_path / str(index), {**files, "model.safetensors": raw}), "model.safetensors")


def test_the_same_name_twice(samples, tmp_path):
    files = samples["tmac"][0]
    header, data = split(files["model.safetensors"])
    text = json.dumps(header).replace('"model.norm.weight": ', '"model.norm.weight": {}, "model.norm.weight": ')
    raw = len(text).to_bytes(8, "little") + text.encode() + data
    refusal(write_files(tmp_path / "a", {**files, "model.safetensors": raw}), "model.norm.weight", "twice")
    one = files["model.safetensors"]
    two = {**files, "a.safetensors": one, "b.safetensors": one}
    del two["model.safetensors"]
    refusal(write_files(tmp_path / "b", two), "b.safetensors", "found it in two")


@pytest.mark.parametrize("name", PACKED)
def test_a_missing_tensor_of_a_layer(samples, name, tmp_path):
    """Without its scales, say, a layer is damaged: it is neither read nor passed on as loose tensors."""
    optional = ("bias", "g_idx", "perm", "weight_zero_point", "axis", "group_size")
    files = samples[name][0]
    layers = open_checkpoint(write_files(tmp_path / "whole", files)).layers
    layer = next(iter(layers))
    parts = [each for each in split(files["model.safetensors"])[0] if each.startswith(f"{layer}.")]
    assert len(parts) >= 2
    for part in parts:
        if part.rpartition(".")[2] in optional:
            continue
        folder = write_files(tmp_path / part, edited(files, lambda header, _, part=part: header.pop(part)))
        refusal(folder, layer)


@pytest.mark.parametrize("name", PACKED)
def test_a_tensor_of_another_type(samples, name, tmp_path):
    files = samples[name][0]
    layer = next(iter(open_checkpoint(write_files(tmp_path / "whole", files)).layers))
    parts = [each for each in split(files["model.safetensors"])[0] if each.startswith(f"{layer}.")]
    for part in parts:

        def change(header, blobs, part=part):
            header[part]["dtype"] = "F64"
            blobs[part] = bytes(8 * max(1, int(np.prod(header[part]["shape"]))))

        folder = write_files(tmp_path / part, edited(files, change))
        refusal(folder, layer)


@pytest.mark.parametrize("pattern", [b"\x00\x7e", b"\x00\x7c", b"\x00\xfc"], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [name for name in PACKED if name != "compressed-tensors"])
def test_scales_that_are_no_numbers(samples, name, pattern, tmp_path):
    """In f16; compressed-tensors' bf16 has a test of its own."""
    files = samples[name][0]
    found = []

    def change(header, blobs):
        part = next(each for each in header if each.endswith((".scales", ".scale", ".weight_scale")))
        assert header[part]["dtype"] == "F16"
        found.append(part)
        blobs[part] = pattern + blobs[part][2:]

    refusal(write_files(tmp_path, edited(files, change)), found[0].rpartition(".")[0])


def test_bfloat16_scales_that_are_no_numbers(samples, tmp_path):
    if "compressed-tensors" not in samples:
        pytest.skip("no reader")

    def change(_, blobs):
        blobs[f"{LAYER}.weight_scale"] = b"\xc0\x7f" + blobs[f"{LAYER}.weight_scale"][2:]

    refusal(write_files(tmp_path, edited(samples["compressed-tensors"][0], change)), LAYER)


@pytest.mark.parametrize("value", [-1, 2, 64, 2**31 - 1, -(2**31)])
def test_group_indices_out_of_range(samples, value, tmp_path):
    if "gptq" not in samples:
        pytest.skip("no reader")

    def change(_, blobs):
        blobs[f"{LAYER}.g_idx"] = np.int32(value).tobytes() + blobs[f"{LAYER}.g_idx"][4:]

    refusal(write_files(tmp_path, edited(samples["gptq"][0], change)), f"{LAYER}.g_idx")


@pytest.mark.parametrize("value", [-1, 11, 2**31 - 1])
def test_a_permutation_out_of_range(samples, value, tmp_path):
    def change(header, blobs):
        name = next(name for name in header if name.endswith(".perm"))
        blobs[name] = np.int32(value).tobytes() + blobs[name][4:]

    refusal(write_files(tmp_path, edited(samples["tmac"][0], change)), "perm")


@pytest.mark.parametrize(
    "name",
    [
        *("../model.safetensors", "/etc/passwd", "a/b.safetensors", "a\\b.safetensors", "..", ".", "", "config.json"),
        *("\0.safetensors", "gone.safetensors", "x" * 5000 + ".safetensors", 3, None),
    ],
)
def test_names_of_shards(samples, name, tmp_path):
    files = samples["tmac"][1]
    index = json.loads(files["model.safetensors.index.json"])
    tensor = next(iter(index["weight_map"]))
    index["weight_map"][tensor] = name
    folder = write_files(tmp_path / "model", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    (tmp_path / "model.safetensors").write_bytes(samples["float"][0]["model.safetensors"])
    if name == "x" * 5000 + ".safetensors":
        with pytest.raises(OSError, match="too long"):
            read_everything(folder)
    else:
        refusal(folder, "model.safetensors.index.json")


def test_an_index_that_disagrees_with_its_files(samples, tmp_path):
    files = samples["tmac"][1]
    index = json.loads(files["model.safetensors.index.json"])
    shards = sorted(set(index["weight_map"].values()))
    tensor = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][tensor] = shards[1]
    folder = write_files(tmp_path, {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    refusal(folder, shards[1], tensor)
    for wrong in ({}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": None}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        refusal(folder, "weight_map")


@pytest.mark.parametrize("method", ["bitsandbytes", "fp8", "", None, 4, ["gptq"], {"a": 1}, "x" * 10**5])
def test_methods_that_are_not_supported(samples, method, tmp_path):
    config = json.dumps({"quantization_config": {"quant_method": method, "load_in_4bit": True}}).encode()
    text = refusal(write_files(tmp_path, {**samples["float"][0], "config.json": config}), "config.json", "quant_method")
    assert "gptq" in text


@pytest.mark.parametrize("value", [3, [], [1], "gptq", True])
def test_a_quantization_config_that_is_no_object(samples, value, tmp_path):
    config = json.dumps({"quantization_config": value}).encode()
    folder = write_files(tmp_path, {**samples["float"][0], "config.json": config})
    if value == []:
        assert open_checkpoint(folder).format == "float"
    else:
        refusal(folder, "quantization_config")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    for path in (tmp_path, tmp_path / name):
        assert "pickle" in refusal(path, name, "safe_serialization")


@POSIX
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "dangling link", "link to itself"])
@pytest.mark.parametrize("place", ["config.json", "model.safetensors", "model.safetensors.index.json", "model.gguf"])
def test_what_is_no_file(samples, tmp_path, kind, place):
    files = {} if place == "model.gguf" else dict(samples["tmac"][place.endswith("index.json")])
    files.pop(place, None)
    path = write_files(tmp_path, files) / place
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "dangling link": lambda: path.symlink_to("nowhere"),
        "link to itself": lambda: path.symlink_to(path.name),
    }[kind]()
    for target in (tmp_path, path):
        assert not read_or_refuse(target)


@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 100_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_deep_json(samples, depth, start, end, tmp_path):
    config = f'{{"a": {start * depth}{"1" if start != "[" else ""}{end * depth}}}'.encode()
    refusal(write_files(tmp_path, {**samples["float"][0], "config.json": config}), "config.json")


@pytest.mark.parametrize("number", ["9" * 4000, "9" * 100_000, "-" + "9" * 400, "1e999999", "NaN", "-Infinity"])
@pytest.mark.parametrize("key", ["group_size", "bits", "format_version", "fixed_zero"])
def test_huge_numbers_in_json(samples, number, key, tmp_path):
    config = json.loads(samples["tmac"][0]["config.json"])
    config["quantization_config"][key] = "@"
    raw = json.dumps(config).replace('"@"', number).encode()
    refusal(write_files(tmp_path, {**samples["tmac"][0], "config.json": raw}), "config.json")


def test_half_a_surrogate_pair_is_no_name(samples, tmp_path):
    header, data = split(samples["float"][0]["model.safetensors"])
    header["\ud800"] = header.pop("lm_head.weight")
    refusal(write_files(tmp_path, {"model.safetensors": join(header, data)}), "surrogate")


BOMBS = {
    "many lists": b'{"a": [' + b"[]," * (MAX_ITEMS // 2 - 8) + b"[]]}",
    "many objects": b'{"a": [' + b"{}," * (MAX_ITEMS // 2 - 8) + b"{}]}",
    "many keys": b"{" + b",".join(b'"%d": {}' % index for index in range(MAX_ITEMS // 2 - 2)) + b"}",
    "many floats": b'{"a": [' + b"1.5," * (MAX_ITEMS - 8) + b"1]}",
    "a long text": b'{"a": "' + b"x" * (60 << 20) + b'"}',
    "a wide text": '{"a": "\U0001f600'.encode() + b"x" * (3 << 20) + b'"}',
    "an escaped wide text": b'{"a": "\\ud83d\\ude00' + b"x" * (3 << 20) + b'"}',
    "a long key twice": b'{"%s": 1, "%s": 1}' % (b"x" * (10 << 20), b"x" * (10 << 20)),
}
TOO_LARGE = {
    "too many items": b'{"a": [' + b"[]," * (8 << 20) + b"[]]}",
    "too long": b'{"a": "' + b"x" * (70 << 20) + b'"}',
    "too wide": '{"a": "\U0001f600'.encode() + b"x" * (40 << 20) + b'"}',
    "too wide, escaped": b'{"a": "\\ud83d\\ude00' + b"x" * (40 << 20) + b'"}',
}


@pytest.mark.parametrize("name", [*BOMBS, *TOO_LARGE])
def test_memory_for_json(tmp_path, name, memory):
    raw = {**BOMBS, **TOO_LARGE}[name]
    path = tmp_path / "config.json"

    def parse():
        try:
            parse_json(raw, path)
        except FormatError:
            return False
        return True

    # `raw` itself, which a caller has read, is not counted here.
    assert memory(parse, len(raw) / 2) == (name in BOMBS and "twice" not in name)


def test_memory_for_headers(tmp_path, memory):
    """A file that is nothing but a header."""
    entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    raw = ("{" + ",".join(entry % index for index in range(40_000)) + "}").encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw)
    assert len(memory(lambda: open_checkpoint(path), len(raw)).tensors) == 40_000
