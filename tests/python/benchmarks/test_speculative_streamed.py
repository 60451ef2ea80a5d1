"""Limits of processes, and a model that is larger than memory within them: engines and llama.cpp that pretend."""

import os
import subprocess
from dataclasses import replace

import pytest


@pytest.fixture
def groups(tmp_path):
    """Folders of version 1 as this process sees them."""
    root, process = tmp_path / "cgroup", tmp_path / "own"
    process.write_text("8:pids:/\n7:blkio:/\n4:memory:/a/b\n0::/\n")
    for name, file in (("memory/a/b", "memory.limit_in_bytes"), ("blkio", "blkio.throttle.read_bps_device")):
        (root / name).mkdir(parents=True)
        (root / name / file).touch()
        (root / name.partition("/")[0] / "cgroup.procs").touch()
    return root, process


def test_limits_are_below_this_process_s_own_groups(groups):
    from benchmarks.speculative_runs.limits import find_limits

    root, process = groups
    limits = find_limits(root, process)
    assert (limits.memory, limits.disk, limits.unified) == (root / "memory" / "a" / "b", root / "blkio", False)
    assert str(limits) == "memory: cgroup v1; disk: block layer (cgroup v1)"
    process.write_text("")
    assert find_limits(root, process).memory == root / "memory"
    nothing = find_limits(root / "none", root / "none")
    assert (nothing.memory, nothing.disk) == (None, None)
    assert str(nothing) == "memory: RLIMIT_DATA; disk: the reader's own throttle"


def test_groups_of_version_2_are_beside_those_with_processes(tmp_path):
    from benchmarks.speculative_runs.limits import Group, find_limits

    root, process = tmp_path / "cgroup", tmp_path / "own"
    (root / "user" / "session").mkdir(parents=True)
    (root / "cgroup.controllers").write_text("cpu io memory")
    (root / "user" / "cgroup.subtree_control").write_text("memory\n")
    (root / "user" / "session" / "cgroup.subtree_control").write_text("\n")
    process.write_text("0::/user/session\n")
    limits = find_limits(root, process)
    assert (limits.memory, limits.disk, limits.unified) == (root / "user", None, True)
    (root / "user" / "cgroup.subtree_control").write_text("io memory\n")
    with Group(find_limits(root, process), "x", 1000) as group:
        folder = root / "user" / "x"
        assert group.folders == [folder]
        assert (folder / "memory.max").read_text() == "1000"
        assert (folder / "memory.swap.max").read_text() == "0"
        (folder / "memory.peak").write_text("900\n")
        assert group.peak() == 900


def test_a_group_holds_a_process_and_slows_its_disk_down(groups, monkeypatch, tmp_path):
    from benchmarks.speculative_runs import limits as module

    monkeypatch.setattr(module, "disk_of", lambda path: "254:0")
    limits = module.find_limits(*groups)
    with module.Group(limits, "x", 1 << 20) as group:
        memory, disk = groups[0] / "memory" / "a" / "b" / "x", groups[0] / "blkio" / "x"
        assert (memory / "memory.limit_in_bytes").read_text() == str(1 << 20)
        assert group.slow_down(tmp_path, 500)
        assert (disk / "blkio.throttle.read_bps_device").read_text() == "254:0 500"
        environment = {**os.environ, **group.environment()}
        words = group.command(["sh", "-c", 'echo "$$ $1 ${TMAC_GROUPS:-gone}"', "sh", "a b"])
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        pid, rest = done.stdout.strip().split(" ", 1)
        assert rest == "a b gone"
        for folder in (memory, disk):
            assert (folder / "cgroup.procs").read_text().strip() == pid
        monkeypatch.setattr(module, "disk_of", lambda path: None)
        assert not group.slow_down(tmp_path, 500)
    assert group.folders == []


@pytest.mark.skipif(os.name != "posix", reason="limits of processes are of POSIX")
def test_without_groups_private_memory_is_bounded(tmp_path):
    from benchmarks.speculative_runs.limits import ROOM, Group, Limits

    with Group(Limits(None, None, unified=False), "x", 64 << 20) as group:
        assert not group.slow_down(tmp_path, 500)
        assert group.peak() is None
        words = group.command(["sh", "-c", "ulimit -d"])
        environment = {**os.environ, **group.environment()}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) << 10 == (64 << 20) + ROOM


def test_the_disk_of_a_partition_is_the_whole_one(tmp_path):
    from benchmarks.speculative_runs.limits import disk_of, drop_cache

    number = tmp_path.stat().st_dev
    devices, name = tmp_path / "block", f"{os.major(number)}:{os.minor(number)}"
    assert disk_of(tmp_path, devices) is None
    part = tmp_path / "sda" / "sda1"
    part.mkdir(parents=True)
    (part / "partition").write_text("1\n")
    (part / "dev").write_text("8:1\n")
    (tmp_path / "sda" / "dev").write_text("8:0\n")
    devices.mkdir()
    (devices / name).symlink_to(part)
    assert disk_of(tmp_path, devices) == "8:0"
    (part / "partition").unlink()
    assert disk_of(tmp_path, devices) == "8:1"
    drop_cache(part / "dev")
    assert (part / "dev").read_text() == "8:1\n"


SAID = """\
common_perf_print:        load time =    9141.16 ms
common_perf_print: prompt eval time =     120.50 ms /    24 tokens (    5.02 ms per token,   199.17 tokens per second)
common_perf_print:        eval time =    3000.00 ms /    15 runs   (  200.00 ms per token,     5.00 tokens per second)
"""


def test_llama_cpp_says_how_long_a_token_took():
    from benchmarks.speculative_runs.process import NoRowError, seconds_of

    assert seconds_of(subprocess.CompletedProcess([], 0, "text", SAID)) == pytest.approx(0.2)
    for status, said in ((1, SAID), (0, SAID.replace(" eval time =    3", "")), (-9, "")):
        with pytest.raises(NoRowError, match=f"status {status}"):
            seconds_of(subprocess.CompletedProcess([], status, "", said))


@pytest.mark.skipif(os.name != "posix", reason="a program that is a script")
@pytest.mark.parametrize("option", ["--load-mode MODE", "--mmap, --no-mmap"])
def test_llama_cpp_maps_its_file_by_the_option_that_it_has(option, tmp_path):
    from benchmarks.speculative_runs.limits import Group, Limits
    from benchmarks.speculative_runs.process import llama_seconds

    program = tmp_path / "llama-completion"
    lines = ["#!/bin/sh", f'[ "$1" = --help ] && echo "{option}" && exit', f'echo "$@" > "{tmp_path}/words"']
    program.write_text("\n".join([*lines, f"cat <<END >&2\n{SAID}END\n"]))
    program.chmod(0o700)
    with Group(Limits(None, None, unified=False), "x") as group:
        assert llama_seconds(tmp_path, tmp_path / "a.gguf", "Once", 16, 2, group) == pytest.approx(0.2)
    words = (tmp_path / "words").read_text()
    assert "-p Once -n 16 -t 2" in words
    assert ("--load-mode mmap" in words) == ("load-mode" in option)


class FakeMeasured:
    """A worker whose engine needs 900 MiB with a draft, and whose tokens are 0, 1, 2, ..."""

    opened = ()
    wrong = False

    def __init__(self, group, cache):
        self.rate = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, do, **request):
        from benchmarks.speculative_runs.process import TooSmallError

        if do == "open":
            self.draft, limit = request["draft"], request["memory_limit"]
            self.opened.append((self.draft, limit))
            if self.draft and limit < 900 << 20:
                raise TooSmallError("memory_limit: this model needs at least 900M", 900 << 20)
            return {"packed": __file__, "total": 1 << 30, "weights": 1 << 29, "streamed": 1 << 28}
        if do == "slow_down":
            self.rate = request["bytes_per_second"]
            return {}
        ids = list(range(request["tokens"]))
        if self.wrong and request["speculative"]:
            ids[-1] = 77
        stats = dict.fromkeys(("passes", "tokens", "io_seconds", "bytes_read"), 1)
        stats |= {"drafted": [4], "accepted": [2], "error": None}
        seconds = (1.0 if request["speculative"] else 4.0) * (2 if self.rate else 1)
        return {
            "token_ids": ids,
            "seconds_per_token": seconds,
            "bytes_read": 5,
            "peak_bytes": 6,
            "speculation": stats if request["speculative"] else None,
        }


@pytest.fixture
def fake_streaming(monkeypatch, tmp_path):
    from benchmarks.speculative_runs import in_memory, streamed
    from benchmarks.speculative_runs.setting import Setting

    for module in (in_memory, streamed):
        monkeypatch.setattr(module, "Measured", FakeMeasured)
    monkeypatch.setattr(FakeMeasured, "opened", [])
    options = {"runs": 3, "tokens": 8, "few_tokens": 4, "streamed_texts": ("prose",), "drafts": ("planes:4", "model")}
    return Setting({"W8": tmp_path / "model"}, None, tmp_path, **options)


def test_plain_and_drafted_texts_share_a_limit(fake_streaming):
    from benchmarks.speculative_runs.limits import Limits
    from benchmarks.speculative_runs.rows import RunFile
    from benchmarks.speculative_runs.streamed import ROUNDED_UP, streamed

    run = RunFile(None, {})
    streamed(fake_streaming, run, Limits(None, None, unified=False), "W8")
    share = int((1 << 30) - 0.4 * (1 << 29))
    assert FakeMeasured.opened[:3] == [(None, None), (None, 1 << 60), ("planes:4", 1 << 60)]
    limit = (900 << 20) + ROUNDED_UP
    assert share < limit
    assert FakeMeasured.opened[3:] == [("planes:4", share), ("planes:4", limit), (None, limit)]  # "model" is not tried
    assert [each.disk for each in run.rows] == ["as it is", "500M"]
    assert [each.factor for each in run.rows] == [4.0, 4.0]
    assert [each.ms for each in run.rows] == [1000.0, 2000.0]
    assert [each.more["throttle"] for each in run.rows] == ["", "reader"]
    assert run.rows[0].more["tokens"] == 8
    assert {line["draft"] for line in run.not_run} == {"model"}
    assert {line["why"] for line in run.not_run} == {"--draft-model names no checkpoint"}


def test_the_peer_is_measured_beside_the_first_draft_within_the_same_limits(fake_streaming, monkeypatch, groups):
    from benchmarks.speculative_runs import limits, streamed
    from benchmarks.speculative_runs.rows import RunFile

    calls = []

    def seconds(programs, path, prompt, tokens, threads, group):
        calls.append((path.name, tokens, group.memory))
        return 30.0

    monkeypatch.setattr(streamed, "llama_seconds", seconds)
    monkeypatch.setattr(limits, "disk_of", lambda path: "254:0")
    peer = fake_streaming.work / "peer.gguf"
    peer.write_bytes(b"GGUF")
    setting = replace(
        fake_streaming, programs=peer.parent, peers={"W8": peer}, draft_model=peer, streamed_texts=("prose", "code")
    )
    run = RunFile(None, {})
    streamed.streamed(setting, run, limits.find_limits(*groups), "W8")
    assert calls == [("peer.gguf", 4, (900 << 20) + streamed.ROUNDED_UP)] * 6
    over = {row.key[2:]: row.over_mmap for row in run.rows}
    assert len(over) == 8
    measured = {key: ratio for key, ratio in over.items() if ratio}
    assert measured == {("planes:4", "prose", "as it is"): 30.0, ("planes:4", "prose", "500M"): 30.0}
    assert {row.more["throttle"] for row in run.rows} == {"", "block layer"}


def test_a_wrong_token_leaves_no_row(fake_streaming, monkeypatch):
    from benchmarks.speculative_runs.limits import Limits
    from benchmarks.speculative_runs.rows import RunFile
    from benchmarks.speculative_runs.streamed import streamed

    monkeypatch.setattr(FakeMeasured, "wrong", True)
    run = RunFile(None, {})
    streamed(fake_streaming, run, Limits(None, None, unified=False), "W8")
    assert run.rows == []
    assert run.not_run[0]["why"] == "wrong tokens: planes:4 gives 77 as token 7, not 7"
