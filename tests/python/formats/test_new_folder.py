"""What is written is there as a whole or not at all: kills, full disks, existing folders."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import SPECS, float_model, mixed

import tmac
from tmac.formats import new_folder as module
from tmac.formats import open_checkpoint
from tmac.formats.new_folder import REPLACED, UNFINISHED, new_folder
from tmac.formats.tmac_writer import write_checkpoint

POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchange(request, monkeypatch):
    """Whether the system can swap two names in one step."""
    if not request.param:
        monkeypatch.setattr(module, "_exchange", lambda *_: False)


def test_a_folder_appears_when_it_is_complete(tmp_path):
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "a").write_text("1")
        assert not out.exists()
        assert folder.parent == out.parent
        assert folder.name.startswith(".")
    assert (out / "a").read_text() == "1"
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("exchange")
def test_an_existing_folder_needs_to_be_replaced(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(FileExistsError, match="exists already"), new_folder(out):
        pass
    with new_folder(out, replace=True) as folder:
        (folder / "new").touch()
    assert [each.name for each in out.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.usefixtures("exchange")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_exception_leaves_what_was_there(tmp_path, error):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def write():
        with new_folder(out, replace=True) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(error):
        write()
    assert [each.name for each in out.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_failing_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    monkeypatch.setattr(module, "_exchange", lambda *_: False)
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(UNFINISHED):
            raise OSError(errno.EIO, "no luck")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no luck"), new_folder(out, replace=True):
        pass
    monkeypatch.undo()
    assert [each.name for each in out.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [out]


@POSIX
def test_the_folder_of_a_living_process_is_left_alone(tmp_path):
    out = tmp_path / "out"
    stale = tmp_path / f".out.00000000{UNFINISHED}"
    stale.mkdir()
    (tmp_path / f".other.00000000{UNFINISHED}").mkdir()
    with new_folder(out) as first:
        assert not stale.exists()
        (first / "a").touch()
        with new_folder(out) as second:
            (second / "b").touch()
            assert first.exists()
        with pytest.raises(OSError, match="not empty"):
            first.rename(out)
        shutil.rmtree(out)
    assert [each.name for each in out.iterdir()] == ["a"]
    assert (tmp_path / f".other.00000000{UNFINISHED}").exists()


def test_a_folder_that_was_on_its_way_comes_back(tmp_path):
    old = tmp_path / f".out.00000000{REPLACED}"
    old.mkdir()
    (old / "old").touch()
    module.clear_stale(tmp_path / "out")
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["old"]
    old.mkdir()
    module.clear_stale(tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


@POSIX
def test_a_kill_leaves_the_old_folder_or_the_new_one(tmp_path, test_budget):
    write_checkpoint(mixed(tmp_path / "x"), tmp_path / "a")
    write_checkpoint(mixed(tmp_path / "x", dict(list(SPECS.items())[:4]), k=99), tmp_path / "b")
    script = Path(__file__).with_name("kill_points.py")
    command = [sys.executable, script, tmp_path, str(round(48 * test_budget)), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["killed"] > 24
    assert seen["old"]
    assert seen["new"]


FULL_DISK = """
import resource, sys
from tmac.formats import open_checkpoint
from tmac.formats.tmac_writer import write_checkpoint
source = open_checkpoint(sys.argv[1])
if sys.argv[3] != "none":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    write_checkpoint(source, sys.argv[2], force=True)
except OSError as error:
    print(error.errno)
"""


@POSIX
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("old", [False, True])
def test_a_limit_on_files_is_an_error_and_leaves_no_half_file(tmp_path, share, old):
    source, out = tmp_path / "source", tmp_path / "out"
    write_checkpoint(mixed(tmp_path / "x"), source)
    if old:
        write_checkpoint(mixed(tmp_path / "x", k=9), out)
    before = {each.name: each.read_bytes() for each in out.iterdir()} if old else None
    limit = round(share * (source / "model.safetensors").stat().st_size)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, source, out, str(limit)], capture_output=True, text=True)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert ({each.name: each.read_bytes() for each in out.iterdir()} if old else None) == before
    assert {each.name for each in tmp_path.iterdir()} == ({"source", "out"} if old else {"source"})


@POSIX
def test_a_full_disk_is_an_error_and_leaves_no_half_file(tmp_path):
    disk, source = tmp_path / "disk", tmp_path / "source"
    write_checkpoint(mixed(tmp_path / "x", k=999), source)
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=40k", "tmac-test", disk]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        command = [sys.executable, "-c", FULL_DISK, source, disk / "out", "none"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.strip() == str(errno.ENOSPC), done.stderr
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_only_our_own_checkpoints_are_replaced(tmp_path):
    source = mixed(tmp_path / "source")
    foreign = float_model(tmp_path / "float")
    for out in (foreign, tmp_path / "empty"):
        out.mkdir(exist_ok=True)
        before = sorted(out.iterdir())
        with pytest.raises(FileExistsError):
            write_checkpoint(source, out)
        with pytest.raises(tmac.FormatError, match="our own format to replace"):
            write_checkpoint(source, out, force=True)
        assert sorted(out.iterdir()) == before


def test_a_checkpoint_does_not_replace_what_it_is_read_from(tmp_path):
    write_checkpoint(mixed(tmp_path / "x"), tmp_path / "out")
    before = sorted((tmp_path / "out").iterdir())
    for path in (tmp_path / "out", tmp_path / "out" / "model.safetensors"):
        source = replace(open_checkpoint(tmp_path / "out"), path=path)
        with pytest.raises(tmac.FormatError, match="another folder"):
            write_checkpoint(source, tmp_path / "out", force=True)
    (tmp_path / "out" / "folder").mkdir()
    with pytest.raises(tmac.FormatError, match="found something else"):
        write_checkpoint(mixed(tmp_path / "x"), tmp_path / "out", force=True)
    assert sorted((tmp_path / "out").iterdir()) == sorted([*before, tmp_path / "out" / "folder"])


def test_a_missing_parent_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_checkpoint(mixed(tmp_path / "x"), tmp_path / "nowhere" / "out")
