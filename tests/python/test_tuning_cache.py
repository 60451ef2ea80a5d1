"""The file of tuned choices: whatever stands in it, and wherever it is, packing works and one warning is given."""

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning import W4, FakeTimer, pairs, use_cache

import tmac
from tmac import tuner, tuning_cache
from tmac.tuning_cache import Choice, Machine, PairTimes, TuningCache, cache_folder

SHAPE = (W4, 48, 96)
KEY = tuner.shape_key(*SHAPE)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    use_cache(monkeypatch, tmp_path / "cache")
    monkeypatch.setattr(tuner, "measure", FakeTimer())
    return tuner.open_cache(tmac.get_num_threads())


def fresh():
    """The cache as another process finds it."""
    tuner._caches.clear()
    return tuner.open_cache(tmac.get_num_threads())


def pack():
    packed = tmac.Codes(W4, np.zeros((48, 96), np.uint8), np.ones((48, 3), np.float16)).pack()
    return packed.kernel, packed.prompt_kernel


def pack_and_tune():
    """The choice before, three times, and after."""
    before = {pack() for _ in range(3)}
    assert tmac.tune([SHAPE]).shapes[0].measured
    return before, pack()


def valid(**changes):
    entry = Choice(*pairs()[-1], (PairTimes(*pairs()[-1], {1: 0.5, 8: 0.5, 128: 0.5}),)).to_dict()
    machine = Machine.here(tmac.get_num_threads()).to_dict()
    return {"format": 1, "machine": machine, "entries": {KEY: {**entry, **changes}}}


def content(**changes):
    return json.dumps({**valid(), **changes}).encode()


def entry(**changes):
    return json.dumps(valid(**changes)).encode()


def seconds(values):
    return entry(times=[{"decode": "a", "prompt": "b", "seconds": values}])


DAMAGED = {
    "empty": b"",
    "truncated": content()[:-20],
    "not UTF-8": b"\xff\xfe\x00",
    "no JSON": b"tuned",
    "a list": b"[]",
    "null": b"null",
    "a number too long": b"1" * 10_000,
    "nested too deep": b"[" * 200_000,
    "too large": b" " * (tuning_cache.LARGEST_BYTES + 1),
    "no format": b"{}",
    "a later format": content(format=2),
    "no machine": content(machine=None),
    "another CPU": content(machine={**valid()["machine"], "cpu": "Z80"}),
    "other features": content(machine={**valid()["machine"], "features": ["mmx"]}),
    "another version": content(machine={**valid()["machine"], "version": "0.0.0"}),
    "entries are a list": content(entries=[1]),
    "an entry is a number": content(entries={KEY: 3}),
    "another entry is a number": content(entries={**valid()["entries"], "x": 3}),
    "a name is a number": entry(decode=1),
    "a name is missing": content(entries={KEY: {"decode": "a", "times": []}}),
    "times are a dict": entry(times={}),
    "a time is text": entry(times=["x"]),
    "seconds are a list": seconds([1.0]),
    "seconds are text": seconds({"1": "fast"}),
    "seconds are negative": seconds({"1": -1.0}),
    "seconds are no number": seconds({"1": float("nan")}),
    "tokens are text": seconds({"many": 1.0}),
}


def test_a_valid_file_is_followed(cache):
    cache.path.parent.mkdir()
    cache.path.write_bytes(content())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack() == pairs()[-1]


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(cache, damage):
    cache.path.parent.mkdir()
    cache.path.write_bytes(damage)
    with pytest.warns(RuntimeWarning, match="tuning cache") as caught:
        assert pack_and_tune() == ({pairs()[0]}, pairs()[-1])
    assert len(caught) == 1
    assert str(cache.path) in str(caught[0].message)
    fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack() == pairs()[-1]


@pytest.mark.parametrize("names", [("qgemm_none", "qgemm_none"), ("", ""), (pairs()[0][0], "qgemm_lut_w2_scalar")])
def test_a_kernel_that_is_no_candidate_is_ignored(cache, names):
    cache.path.parent.mkdir()
    cache.path.write_bytes(entry(decode=names[0], prompt=names[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pack() == pairs()[0]
        assert tmac.tune([SHAPE]).shapes[0].measured
        assert pack() == pairs()[-1]


@pytest.mark.parametrize(
    "times",
    [
        [{"decode": "[/bold]", "prompt": "\x1b[2J", "seconds": {"1": 0.5, "8": 0.5, "128": 0.5}}],
        [{"decode": pairs()[0][0], "prompt": pairs()[0][1], "seconds": {"1": 0.5}}],
        [{"decode": pairs()[0][0], "prompt": pairs()[0][1], "seconds": {}}],
    ],
    ids=["other kernels", "other tokens", "no tokens"],
)
def test_times_that_nobody_measured_are_not_shown(cache, times):
    cache.path.parent.mkdir()
    cache.path.write_bytes(entry(times=times))
    (shape,) = tmac.tune([SHAPE]).shapes
    assert shape.measured
    assert [(each.decode, each.prompt) for each in shape.choice.times] == pairs()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_content_raises(cache, data):
    """Any bytes, or a valid file in which one value is another."""
    if data.draw(st.booleans()):
        damage = data.draw(st.binary(max_size=200))
    else:
        values = json.loads(content())
        row = values["entries"][KEY]
        places = [(values, "machine"), (values, "entries"), (values["entries"], KEY), *((row, name) for name in row)]
        places += [(row["times"], 0), *((row["times"][0], name) for name in row["times"][0])]
        owner, name = data.draw(st.sampled_from(places))
        owner[name] = data.draw(JSON)
        damage = json.dumps(values).encode()
    cache.path.parent.mkdir(exist_ok=True)
    cache.path.write_bytes(damage)
    fresh()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the tuning cache")
        assert pack() in pairs()
        report = tmac.tune([SHAPE])
    assert json.dumps(report.to_dict())
    assert pack() == (report.shapes[0].choice.decode, report.shapes[0].choice.prompt)


def test_files_of_other_machines_lie_beside_it(cache):
    tmac.tune([SHAPE])
    other = TuningCache(cache.path.parent, Machine("Z80", (), 1, "0"))
    assert other.path != cache.path
    assert other.get(KEY) is None
    with other.lock():
        other.put(KEY, Choice("a", "b"))
    assert fresh().get(KEY).names == ",".join(pairs()[-1])
    assert TuningCache(cache.path.parent, Machine("Z80", (), 1, "0")).get(KEY) == Choice("a", "b")


def test_what_others_wrote_stays(cache):
    tmac.tune([SHAPE])
    other = TuningCache(cache.path.parent, cache.machine)
    with other.lock():
        other.put("another shape", Choice("a", "b"))
    tmac.tune([(W4, 7, 7)])
    assert set(json.loads(cache.path.read_text())["entries"]) == {KEY, "another shape", tuner.shape_key(W4, 7, 7)}


def test_times_come_back_as_they_were(cache):
    before = tmac.tune([SHAPE]).shapes[0].choice
    assert fresh().get(KEY) == before


@pytest.mark.parametrize("place", ["a file for a folder", "a folder for a file", "a loop of links"])
def test_what_cannot_be_read_or_written_is_ignored_with_one_warning(cache, place):
    folder = cache.path.parent
    if place == "a file for a folder":
        folder.write_bytes(b"")
    elif place == "a folder for a file":
        cache.path.mkdir(parents=True)
    else:
        folder.mkdir()
        folder.with_name("loop").symlink_to(folder.with_name("loop"))
        tuner._caches[(folder, tmac.get_num_threads())] = TuningCache(folder.with_name("loop"), cache.machine)
    with pytest.warns(RuntimeWarning, match="tuning cache") as caught:
        assert pack_and_tune() == ({pairs()[0]}, pairs()[-1])  # this process knows it all the same
    assert len(caught) == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no pipes in folders")
def test_a_pipe_does_not_hang(cache):
    cache.path.parent.mkdir()
    os.mkfifo(cache.path)
    with pytest.warns(RuntimeWarning, match="is not a file"):
        assert pack() == pairs()[0]


def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("where", ["Path.mkdir", "os.open", "os.fsync"])
def test_a_read_only_cache_is_read_and_not_written(cache, monkeypatch, where):
    tmac.tune([SHAPE])
    fresh()
    owner, _, name = where.partition(".")
    monkeypatch.setattr({"Path": Path, "os": os}[owner], name, refuse)
    with pytest.warns(RuntimeWarning, match="cannot be written") as caught:
        report = tmac.tune([SHAPE, (W4, 5, 5), (W4, 6, 6)])
    assert len(caught) == 1
    assert [shape.measured for shape in report.shapes] == [False, True, True]
    assert pack() == pairs()[-1]
    again = tmac.tune([SHAPE, (W4, 5, 5), (W4, 6, 6)])  # this process knows them all the same
    assert not any(shape.measured for shape in again.shapes)
    assert tuner.tuned_kernels(W4, 5, 5) == tuner.tuned_kernels(W4, 6, 6) == ",".join(pairs()[-1])


def test_what_could_not_be_written_is_written_with_the_next(cache, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.warns(RuntimeWarning, match="cannot be written"):
            tmac.tune([SHAPE])
    tmac.tune([(W4, 5, 5)])
    assert set(json.loads(cache.path.read_text())["entries"]) == {KEY, tuner.shape_key(W4, 5, 5)}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(cache):
    tmac.tune([SHAPE])
    fresh()
    cache.path.parent.chmod(0o500)
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        assert tmac.tune([SHAPE], force=True).shapes[0].measured
    cache.path.parent.chmod(0o700)


def test_an_unreadable_file_is_ignored_with_one_warning(cache, monkeypatch):
    tmac.tune([SHAPE])
    fresh()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.warns(RuntimeWarning, match="cannot be read") as caught:
        assert {pack() for _ in range(3)} == {pairs()[0]}
    assert len(caught) == 1


def test_a_write_that_fails_leaves_the_old_file(cache, monkeypatch):
    tmac.tune([SHAPE])
    before = cache.path.read_bytes()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        tmac.tune([(W4, 5, 5)])
    assert cache.path.read_bytes() == before
    assert list(cache.path.parent.glob("*.tmp")) == []


def test_without_a_home_there_is_no_cache(monkeypatch, tmp_path):
    use_cache(monkeypatch, tmp_path)
    monkeypatch.delenv("TMAC_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert tuner.open_cache(1) is None
    assert pack() == pairs()[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of another system")
def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TMAC_CACHE_DIR", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "tmac"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tmac"
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"
