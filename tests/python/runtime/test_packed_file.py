"""The packed cache file: what is in it, and when it is made again."""

import json
import os
import shutil
import sys
from itertools import pairwise

import numpy as np
import pytest
from recording_builder import RecordingBuilder
from runtime_models import config_of, model_of

import tmac
from tmac import _core
from tmac.runtime.loading import load_weights, open_model
from tmac.runtime.streaming import packed_file as module
from tmac.runtime.streaming.packed_file import open_packed, packed_file, packed_path
from tmac.runtime.streaming.packed_index import (
    BLOCK,
    HEADER,
    ITEM_BYTES,
    NO_CODES,
    TOP,
    PackedIndex,
    checksum_of,
)

OPTIONS = {"activation": None, "head_bits": None, "embedding_bits": None}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=["Llama", "Qwen3Moe", "float", "gguf", "gpt-8"])
def folder(request, tmp_path_factory, repository):
    """Checkpoints: low bits with biases, experts, floats, blocks of ggml, 8 bits in regions of four."""
    path = tmp_path_factory.mktemp("model")
    if request.param == "gguf":
        shutil.copy(repository / "tests" / "data" / "tiny_llama.gguf", path / "model.gguf")
        return path / "model.gguf"
    family = {"float": "Qwen2", "gpt-8": "GPTNeoX"}.get(request.param, request.param)
    model = model_of(config_of(family))
    if request.param != "float":
        tmac.quantize_(model, tmac.QuantConfig(bits=8 if request.param == "gpt-8" else 3, group_size=32))
    model.save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(folder, tmp_path):
    """A copy that may be damaged."""
    if folder.is_file():
        shutil.copy(folder, tmp_path / "model.gguf")
        return tmp_path / "model.gguf"
    return shutil.copytree(folder, tmp_path / "model")


def recorded(checkpoint):
    opened = open_model(checkpoint)
    builder = RecordingBuilder(opened.description.config)
    load_weights(opened, builder)
    return builder


def regions_of(file, place):
    return _core.packed_regions(np.frombuffer(file.index.heads[place.head].content, np.uint8))


def matrix_of(file, content, place):
    """A matrix put together from its parts."""
    if place.head < 0:
        rows, columns = place.shape
        return content[place.offset : place.offset + rows * columns * ITEM_BYTES[place.dtype]]
    regions = regions_of(file, place)
    whole = np.zeros(regions[-1][1], np.uint8)
    whole[: regions[0][0]] = content[place.offset : place.offset + regions[0][0]]
    for offset, (begin, end, _) in zip(place.regions, regions, strict=True):
        whole[begin:end] = content[offset : offset + end - begin]
    return whole


def test_the_file_holds_what_the_loader_gives(checkpoint):
    file, wanted = packed_file(open_model(checkpoint), OPTIONS), recorded(checkpoint)
    content = np.fromfile(file.path, np.uint8)
    vectors = dict(file.vectors)
    for place in file.index.matrices:
        found = matrix_of(file, content, place)
        expected = wanted.packed[place.name] if place.head >= 0 else wanted.floats[place.name][0]
        assert np.array_equal(found, expected.reshape(-1).view(np.uint8)), place.name
        bias = vectors.pop(f"{place.name}.bias", None)
        assert (bias is None) == (place.name not in wanted.biases), place.name
        assert bias is None or np.array_equal(bias, wanted.biases[place.name])
    for name, vector in vectors.items():
        assert np.array_equal(vector, wanted.floats[name][0]), name
    assert {place.name for place in file.index.matrices} | vectors.keys() == wanted.names


def test_what_a_prefix_of_the_planes_needs_comes_first(checkpoint):
    """Of every layer: group values and float matrices, then region by region; a part is in the section of its plane."""
    file = packed_file(open_model(checkpoint), OPTIONS)
    assert len(file.index.layers) == open_model(checkpoint).description.config["num_layers"]
    content = np.fromfile(file.path, np.uint8)
    for number, sections in enumerate(file.index.layers):
        places = [place for place in file.index.matrices if place.layer == number]
        for place in places:
            inside = [s.plane for s in sections if s.begin <= place.offset < s.end]
            assert inside == [NO_CODES]
            planes = [plane for _, _, plane in regions_of(file, place)] if place.regions else []
            for offset, plane in zip(place.regions, planes, strict=True):
                assert [s.plane for s in sections if s.begin <= offset < s.end] == [plane]
        assert [s.plane for s in sections] == sorted({s.plane for s in sections})
        for one, other in pairwise(sections):
            assert one.end == other.begin
    for section in [*file.index.top, *(s for layer in file.index.layers for s in layer), file.index.vectors]:
        assert section.begin % BLOCK == section.end % BLOCK == 0
        assert checksum_of(content[section.begin : section.end].tobytes()) == section.checksum
    assert {place.layer for place in file.index.matrices if "embed" in place.name or place.name == "head"} == {TOP}


def test_it_is_made_once(checkpoint, monkeypatch):
    first = packed_file(open_model(checkpoint), OPTIONS)
    monkeypatch.setattr(module, "write_packed", lambda *_: pytest.fail("it was there"))
    assert packed_file(open_model(checkpoint), OPTIONS).index == first.index


@pytest.mark.parametrize("how", ["touched", "another version", "fewer features", "other kernels"])
def test_a_foreign_one_is_replaced(checkpoint, how, monkeypatch):
    first = packed_file(open_model(checkpoint), OPTIONS)
    if how == "touched":
        source = checkpoint if checkpoint.is_file() else checkpoint / "model.safetensors"
        os.utime(source, ns=(1, 1))
    elif how == "another version":
        monkeypatch.setattr(_core, "__version__", "0.0.1")
    elif how == "fewer features":
        monkeypatch.setattr(_core, "cpu_features", dict)
    elif first.index.heads:
        monkeypatch.setattr(module, "tuned_kernels", lambda *_: "qgemm_other,qgemm_other")
        with pytest.raises(ValueError, match="packed for"):
            open_packed(first.path, first.index.identity)
        return
    model = open_model(checkpoint)
    second = packed_file(model, OPTIONS)
    assert second.path == first.path
    assert (second.modified_ns != first.modified_ns) == (how != "other kernels")
    assert packed_file(model, OPTIONS).modified_ns == second.modified_ns


def test_other_options_have_another_file(checkpoint):
    model = open_model(checkpoint)
    first, second = packed_path(model, OPTIONS), packed_path(model, OPTIONS | {"head_bits": 4})
    assert first != second
    assert first.parent == second.parent


def cut(content, rng):
    return content[: int(rng.integers(0, len(content)))]


def flip_header(content, rng):
    return flip(content, rng, 0, HEADER.size)


def flip_index(content, rng):
    _, offset, size, _, _ = HEADER.unpack_from(content)
    return flip(content, rng, offset, size)


def flip(content, rng, begin, size):
    changed = bytearray(content)
    changed[begin + int(rng.integers(0, size))] ^= 1 << int(rng.integers(0, 8))
    return bytes(changed)


@pytest.mark.parametrize("damage", [cut, flip_header, flip_index])
def test_a_damaged_one_is_replaced(checkpoint, damage):
    model, rng = open_model(checkpoint), np.random.default_rng(0)
    file = packed_file(model, OPTIONS)
    content = file.path.read_bytes()
    for _ in range(8):
        file.path.write_bytes(damage(content, rng))
        with pytest.raises(ValueError, match=r"expected|index|section|matrix|vector"):
            open_packed(file.path, file.index.identity)
        assert packed_file(model, OPTIONS).index == file.index
        assert file.path.read_bytes() == content


HOSTILE = {
    "a section past the end": lambda v: v["layers"][0].__setitem__(0, [BLOCK, 1 << 40, 0, -1]),
    "a negative one": lambda v: v.__setitem__("vectors", [-BLOCK, 0, 0, -1]),
    "sections out of order": lambda v: v["layers"][0].reverse() or v["layers"][0].append(v["vectors"]),
    "a layer that is not there": lambda v: v["matrices"][0].__setitem__(1, 99),
    "a head that is not there": lambda v: v["matrices"][0].__setitem__(3, 99),
    "no numbers": lambda v: v["matrices"][0].__setitem__(2, "0"),
    "vectors elsewhere": lambda v: v["vector_places"].__setitem__("final_norm", [0, 1 << 40]),
    "nothing": lambda v: v.clear(),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_index_that_lies_is_refused(folder, name):
    file = packed_file(open_model(folder), OPTIONS)
    values = json.loads(file.index.to_json())
    HOSTILE[name](values)
    with pytest.raises(ValueError, match=r"a |the index"):
        PackedIndex.from_json(json.dumps(values).encode(), file.size)


def test_a_write_that_fails_leaves_nothing(folder, monkeypatch):
    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    model = open_model(folder)
    monkeypatch.setattr(module.PackedWriter, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        packed_file(model, OPTIONS)
    assert list(packed_path(model, OPTIONS).parent.iterdir()) == []


def test_shards_of_a_gguf_model_belong_together(tmp_path):
    names = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for name in [*names, "m-00001-of-00002.gguf", "m.gguf"]:
        (tmp_path / name).touch()
    assert [path.name for path in module.source_files(tmp_path / names[0])] == names
    assert module.source_files(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]


def checksum_in_docs(content):
    """The last paragraph of docs/packed_file.md."""
    lanes, most = list(range(1, 9)), 2**64

    def step(lane, word):
        x = (lane ^ word) * (2**21 + 1) % most
        return (x ^ (x >> 30)) * (2**13 + 1) % most

    padded = content + bytes(-len(content) % 64)
    for at in range(0, len(padded), 8):
        lane = at // 8 % 8
        lanes[lane] = step(lanes[lane], int.from_bytes(padded[at : at + 8], sys.byteorder))
    digest = len(content)
    for lane in lanes:
        digest = step(digest, lane)
    return digest


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 1000])
def test_the_hash_is_the_documented_one(size):
    content = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert checksum_of(content) == checksum_in_docs(content)


def test_the_hash_does_not_depend_on_cuts_and_sees_every_bit():
    content = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    whole = checksum_of(content.tobytes())
    for step in (1, 7, 64, 100):
        hashed = _core.ContentHash()
        for begin in range(0, 1000, step):
            hashed.update(content[begin : begin + step])
        assert hashed.digest() == whole
    seen = {whole, checksum_of(content[:999].tobytes()), checksum_of(bytes(1)), checksum_of(b"")}
    for byte in range(1000):
        for bit in range(8):
            content[byte] ^= 1 << bit
            seen.add(checksum_of(content.tobytes()))
            content[byte] ^= 1 << bit
    assert len(seen) == 4 + 8000
