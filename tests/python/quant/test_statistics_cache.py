"""Statistics on the disk: found again, and made again where the files are not what they should be."""

import json

import pytest
import torch
from full_disk import small_files
from safetensors.torch import load_file, save_file

from tmac.quant.fisher import fisher
from tmac.quant.gather import gather
from tmac.quant.statistics_cache import StatisticsCache

from .chain import Chain, ids

TEXT = ids()


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        for part in ("hessian", "channel_max", "tokens"):
            ours, theirs = getattr(found[name], part), getattr(expected[name], part)
            assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs)), (name, part)


def files(folder):
    return sorted(folder.rglob("*.safetensors"))


def test_a_second_call_computes_nothing(tmp_path):
    first = gather(Chain(), TEXT, cache=tmp_path)
    source = Chain()
    assert_same(gather(source, TEXT, cache=tmp_path), first)
    assert source.entered == source.runs == []
    assert len(files(tmp_path)) == 4
    assert all(path.suffix == ".safetensors" for path in tmp_path.rglob("*") if path.is_file())
    assert_same(first, gather(Chain(), TEXT))


def test_fisher_too(tmp_path):
    first = fisher(Chain(), TEXT, cache=tmp_path)
    source = Chain()
    second = fisher(source, TEXT, cache=tmp_path)
    assert source.entered == []
    assert list(second.row_weight) == list(first.row_weight)
    assert all(torch.equal(second.row_weight[name], first.row_weight[name]) for name in first.row_weight)
    assert torch.equal(second.embedding, first.embedding)
    assert second.tokens == first.tokens == 256
    fisher(source, TEXT, seed=1, cache=tmp_path)
    assert source.entered != []


@pytest.mark.parametrize("change", ["model", "ids", "window"])
def test_other_models_texts_and_windows_have_files_of_their_own(change, tmp_path):
    gather(Chain(), TEXT, cache=tmp_path)
    source, text = Chain(), TEXT
    if change == "model":
        source.fingerprint = "another"
    text = {"model": TEXT, "ids": TEXT.roll(1), "window": TEXT.view(4, 64)}[change]
    gather(source, text, cache=tmp_path)
    assert source.entered == [0, 1, 2, 3]
    assert len(files(tmp_path)) == 8


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def huge(path):
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def noise(path):
    path.write_bytes(b"\xff" * 100)


def tensors(path):
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def foreign(path):
    save_file(tensors(path), path)


def other_key(path):
    entry = {"key": "x", "checksums": {}, "about": {}}
    save_file(tensors(path), path, {"tmac_statistics": json.dumps(entry)})


def no_json(path):
    save_file(tensors(path), path, {"tmac_statistics": "[1"})


def gone(path):
    path.unlink()


DAMAGES = [cut, empty, flip, noise, huge, foreign, other_key, no_json, gone]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("block", [0, 1, 3])
def test_what_is_damaged_is_made_again(damage, block, tmp_path):
    first = gather(Chain(), TEXT, cache=tmp_path)
    expected = {name: first[name] for name in first}
    damage(files(tmp_path)[block])
    source = Chain()
    found = gather(source, TEXT, cache=tmp_path)
    assert source.entered == list(range(block + 1))  # blocks before it are run, those after it not even read
    assert_same(found, expected)
    assert_same(gather(Chain(), TEXT, cache=tmp_path), expected)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_sensitivities_are_made_again(damage, tmp_path):
    first = fisher(Chain(), TEXT, cache=tmp_path)
    damage(files(tmp_path)[0])
    assert torch.equal(fisher(Chain(), TEXT, cache=tmp_path).embedding, first.embedding)


def test_damage_while_statistics_are_in_use(tmp_path):
    found = gather(Chain(), TEXT, cache=tmp_path)
    flip(files(tmp_path)[2])
    assert found["1.q"].tokens == 256
    with pytest.raises(ValueError, match="damaged or gone since the statistics were gathered"):
        [found[name] for name in found]


def test_an_interrupted_call_goes_on_where_it_was(tmp_path, monkeypatch):
    expected = gather(Chain(), TEXT)
    source = Chain()
    run = source.run

    def stop(index, module, hidden):
        if index == 2:
            raise KeyboardInterrupt
        return run(index, module, hidden)

    source.run = stop
    with pytest.raises(KeyboardInterrupt):
        gather(source, TEXT, cache=tmp_path)
    assert len(files(tmp_path)) == 2
    times = [path.stat().st_mtime_ns for path in files(tmp_path)]
    assert_same(gather(Chain(), TEXT, cache=tmp_path), expected)
    assert [path.stat().st_mtime_ns for path in files(tmp_path)][:2] == times


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    cache = StatisticsCache(tmp_path, "model", TEXT, {})
    cache.write("name", {"x": torch.arange(3.0)}, {"about": 1})
    before = cache.path("name").read_bytes()

    def fail(descriptor):
        raise OSError("no space")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        cache.write("name", {"x": torch.arange(4.0)}, {"about": 2})
    assert [path.name for path in cache.folder.iterdir()] == ["name.safetensors"]
    assert cache.path("name").read_bytes() == before
    assert cache.about("name") == {"about": 1}
    assert cache.read("name")["x"].tolist() == [0, 1, 2]
    assert cache.read("name", ["y"]) is None
    assert cache.is_whole("name")
    assert not cache.is_whole("other")


def test_a_disk_that_is_full_is_an_os_error_and_leaves_nothing(tmp_path):
    with small_files(500), pytest.raises(OSError, match="cannot be written"):
        gather(Chain(), TEXT, cache=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert list(gather(Chain(), TEXT, cache=tmp_path)) == list(gather(Chain(), TEXT))
