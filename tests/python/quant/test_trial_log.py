import errno
import json
import os

import pytest

pytest.importorskip("torch", reason="needs the extra tmac-cpu[torch]")

from tmac.quant import trial_log
from tmac.quant.trial_log import TrialLog

SUBJECT = {"model": "abc", "calibration": "def", "options": {"widths": [2, 3]}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "search" / "trials.jsonl"


def test_what_was_added_is_found_again(path):
    with TrialLog(path, SUBJECT) as log:
        log.add("trial", "a", loss=0.5, elapsed=3.0)
        log.add("stop", "a", elapsed=4.5)
        assert log.find("trial", "a")["loss"] == 0.5
    with TrialLog(path, SUBJECT) as log:
        assert log.find("trial", "a") == {"kind": "trial", "key": "a", "loss": 0.5, "elapsed": 3.0}
        assert log.find("trial", "b") is None
        assert [entry["kind"] for entry in log.entries] == ["subject", "trial", "stop"]
        assert log.seconds == 4.5


def test_floats_come_back_exactly(path):
    value = 0.1 + 0.2
    with TrialLog(path, SUBJECT) as log:
        assert log.add("trial", "a", loss=value)["loss"] == value
    with TrialLog(path, SUBJECT) as log:
        assert log.find("trial", "a")["loss"] == value


def test_every_prefix_of_a_log_is_a_log(path):
    with TrialLog(path, SUBJECT) as log:
        for name in "abc":
            log.add("trial", name, loss=1.0)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with TrialLog(path, SUBJECT) as log:
            whole = max(content[:length].count(b"\n"), 1)
            assert len(log.entries) == whole
            log.add("trial", "new", loss=2.0)
        lines = path.read_bytes().splitlines()
        assert len(lines) == whole + 1
        assert [json.loads(line)["kind"] for line in lines] == ["subject"] + ["trial"] * whole


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model": "xyz"}, r'model \(was "abc", is "xyz"\)'),
        ({"calibration": "other", "options": {}}, "calibration .*, options"),
        ({"extra": 1}, r"extra \(was null, is 1\)"),
    ],
)
def test_a_log_of_another_subject_is_refused_and_names_what_changed(path, changes, named):
    TrialLog(path, SUBJECT).close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=named):
        TrialLog(path, {**SUBJECT, **changes})
    assert path.read_bytes() == before
    with TrialLog(path, {**SUBJECT, **changes}, fresh=True) as log:
        assert len(log.entries) == 1


def test_a_damaged_line_in_the_middle_is_refused(path):
    with TrialLog(path, SUBJECT) as log:
        log.add("trial", "a")
        log.add("trial", "b")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:9] + b"\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is damaged"):
        TrialLog(path, SUBJECT)


def test_a_log_of_another_version_is_refused(path, monkeypatch):
    TrialLog(path, SUBJECT).close()
    monkeypatch.setattr(trial_log, "VERSION", 2)
    with pytest.raises(ValueError, match="version 2"):
        TrialLog(path, SUBJECT)


def test_two_searches_do_not_share_a_log(path):
    pytest.importorskip("fcntl")
    with TrialLog(path, SUBJECT), pytest.raises(BlockingIOError, match="another search"):
        TrialLog(path, SUBJECT)
    TrialLog(path, SUBJECT).close()


def test_a_full_disk_leaves_what_was_there(path, monkeypatch):
    log = TrialLog(path, SUBJECT)
    log.add("trial", "a", loss=1.0)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.add("trial", "b", loss=2.0)
    assert log.find("trial", "b") is None
    log.add("trial", "c", loss=3.0)
    log.close()
    with TrialLog(path, SUBJECT) as log:
        assert [entry["key"] for entry in log.all("trial")] == ["a", "c"]
