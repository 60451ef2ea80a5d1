"""Threads: how many, from how many Python threads at once, and what is left of them after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import tmac
from tmac import _core

SPEC = tmac.QuantSpec(bits=4, group_size=32)
N, K, TOKENS = 512, 512, 3  # above the work for which a second thread is started


def weight_and_input() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = tmac.round_to_nearest(rng.standard_normal((N, K), dtype=np.float32), SPEC)
    return codes.pack().buffer(), rng.standard_normal((TOKENS, K), dtype=np.float32)


def run(script: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture(autouse=True)
def default_threads():
    yield
    tmac.set_num_threads(0)


def test_set_and_reset():
    default = _core.get_num_threads()
    tmac.set_num_threads(3)
    assert tmac.get_num_threads() == _core.get_num_threads() == 3
    tmac.set_num_threads(0)
    assert _core.get_num_threads() == default >= 1
    with pytest.raises(ValueError, match="must not be negative"):
        tmac.set_num_threads(-1)


def test_default_follows_affinity():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no sched_setaffinity")
    one = min(os.sched_getaffinity(0))
    done = run(f"import os; os.sched_setaffinity(0, {{{one}}}); import tmac; print(tmac.get_num_threads())")
    assert done.stdout.strip() == "1", done.stderr


def test_more_threads_than_rows_change_no_bit():
    buffer, x = weight_and_input()
    alone = _core.linear(x, buffer, None, 1)
    for threads in (2, 7, 64, 256):
        assert np.array_equal(_core.linear(x, buffer, None, threads), alone)


def test_many_python_threads_at_once():
    buffer, x = weight_and_input()
    expected = _core.linear(x, buffer)
    wrong: list[int] = []

    def work(index: int) -> None:
        if not all(np.array_equal(_core.linear(x, buffer, None, 2), expected) for _ in range(20)):
            wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
    assert wrong == []


FORK = """
    import os, sys, warnings
    warnings.simplefilter("ignore")  # CPython warns of any fork with threads: that is the case under test
    {first}
    import numpy as np, tmac
    from tmac import _core
    spec = tmac.QuantSpec(bits=4, group_size=32)
    rng = np.random.default_rng(0)
    buffer = tmac.round_to_nearest(rng.standard_normal(({n}, {k}), dtype=np.float32), spec).pack().buffer()
    x = rng.standard_normal((3, {k}), dtype=np.float32)
    expected = _core.linear(x, buffer, None, 1)
    {use}
    child = os.fork()
    if child == 0:
        same = np.array_equal(_core.linear(x, buffer, None, 2), expected)
        try:
            tmac.set_num_threads(2)
            more = "allowed"
        except ValueError as error:
            more = "refused" if "spawn" in str(error) else str(error)
        print(same, more, _core.get_num_threads(), tmac.get_num_threads(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    ("first", "use", "answer"),
    [
        ("", "_core.linear(x, buffer, None, 2)", "True refused 1 1"),
        ("import torch", "torch.ones(1 << 20).add_(1).sum()", "True refused 1 1"),
    ],
    ids=["after our threads", "after torch's threads"],
)
def test_a_forked_child_has_one_thread_and_does_not_hang(first: str, use: str, answer: str):
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    if first:
        pytest.importorskip("torch")
    done = run(FORK.format(first=first, use=use, n=N, k=K))
    assert done.stdout.strip() == answer, done.stderr


def test_a_child_forked_before_any_use_has_all_threads():
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    script = """
        import os, warnings
        warnings.simplefilter("ignore")
        import tmac
        child = os.fork()
        if child == 0:
            tmac.set_num_threads(2)
            print(tmac.get_num_threads(), flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    """
    done = run(script)
    assert done.stdout.strip() == "2", done.stderr


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only there a process can tell whether torch is loaded")

SETUP = """
    import os, sys, threading, time
    import numpy as np, tmac
    from pathlib import Path
    from tmac import _core

    def workers():
        "Thread id -> nanoseconds of CPU, of the workers of our own."
        tasks = [task for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text() == "tmac-worker\\n"]
        return {{task.name: int((task / "schedstat").read_text().split()[0]) for task in tasks}}

    def asleep():
        stats = [Path(f"/proc/self/task/{{task}}/stat").read_text() for task in workers()]
        return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)

    spec = tmac.QuantSpec(bits=4, group_size=32)
    rng = np.random.default_rng(0)
    buffer = tmac.round_to_nearest(rng.standard_normal(({n}, {k}), dtype=np.float32), spec).pack().buffer()
    x = rng.standard_normal((3, {k}), dtype=np.float32)
    expected = _core.linear(x, buffer, None, 1)
    def same(threads):
        return all(np.array_equal(_core.linear(x, buffer, None, threads), expected) for _ in range(20))
"""


def script(body: str) -> str:
    return textwrap.dedent(SETUP.format(n=N, k=K)) + textwrap.dedent(body)


@LINUX
def test_without_torch_regions_run_on_our_own_workers():
    # Packing has started workers already; NumPy has threads too. All that a region of three threads adds is ours.
    done = run(
        script("""
        def tasks():
            return len(os.listdir("/proc/self/task"))
        tasks_before, workers_before = tasks(), len(workers())
        same_bits = same(3)
        only_ours = tasks() - tasks_before == len(workers()) - workers_before
        print(_core.thread_backend(), same_bits, len(workers()), only_ours)
    """)
    )
    assert done.stdout == "own True 2 True\n", done.stdout + done.stderr


@LINUX
def test_torch_imported_later_takes_the_regions_over_and_our_workers_sleep():
    pytest.importorskip("torch")
    done = run(
        script("""
        print(_core.thread_backend(), same(2), len(workers()) >= 1)
        import torch
        deadline = time.monotonic() + 30
        while not asleep() and time.monotonic() < deadline:
            time.sleep(0.01)
        before = workers()
        torch.ones(1 << 20).add_(1).sum()
        print(_core.thread_backend(), same(2), workers() == before)
    """)
    )
    assert done.stdout.split("\n")[:2] == ["own True True", "openmp True True"], done.stdout + done.stderr


@LINUX
def test_workers_sleep_between_regions_and_are_woken():
    done = run(
        script("""
        assert same(2)
        deadline = time.monotonic() + 30
        while not asleep() and time.monotonic() < deadline:
            time.sleep(0.01)
        before = workers()
        time.sleep(0.2)
        slept = workers() == before
        while workers() == before and time.monotonic() < deadline:  # beside other work a caller may do all alone
            assert same(2)
        print(slept, workers() != before)
    """)
    )
    assert done.stdout.strip() == "True True", done.stdout + done.stderr


@pytest.mark.parametrize("first", ["", "import torch"], ids=["without torch", "with torch"])
@pytest.mark.parametrize(
    "last", ["assert same(2)", "assert same(2); time.sleep(0.01)", "in_the_background(); time.sleep(0.05)"]
)
def test_a_process_ends_while_workers_wait_sleep_or_work(first: str, last: str):
    if first:
        pytest.importorskip("torch")
    done = run(
        script(f"""
        {first}
        def in_the_background():
            def work():
                while True:
                    same(2)
            threading.Thread(target=work, daemon=True).start()
        {last}
        print("end", flush=True)
    """)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_the_barrier_is_measured_and_its_arguments_are_checked():
    assert _core.thread_backend() in ("own", "openmp")
    assert _core.barrier_seconds(2, 2) > 0
    with pytest.raises(ValueError, match="repeats must be positive"):
        _core.barrier_seconds(0, 2)
    with pytest.raises(ValueError, match="num_threads must not be negative"):
        _core.barrier_seconds(1, -2)


@pytest.mark.parametrize("operation", ["round_to_nearest", "pack", "unpack", "tensors", "dequantize"])
def test_weights_are_made_and_read_with_the_threads_of_the_setting(operation: str, monkeypatch: pytest.MonkeyPatch):
    name = "unpack" if operation == "tensors" else operation
    plain, counts = _core.Packer.add if operation == "pack" else getattr(_core, name), []
    codes = tmac.round_to_nearest(np.ones((4, 32), np.float32), SPEC)
    buffer = codes.pack().buffer()

    def spy(*arguments: object, **options: object) -> object:
        counts.append(options.get("num_threads", arguments[-1]))
        return plain(*arguments, **options)

    if operation == "pack":
        monkeypatch.setattr(_core.Packer, "add", spy)
    else:
        monkeypatch.setattr(_core, name, spy)
    monkeypatch.setattr(tmac.codes, "get_num_threads", lambda: 5)
    if operation == "dequantize":
        packed = pytest.importorskip("tmac.nn.packed")
        monkeypatch.setattr(packed, "get_num_threads", lambda: 5)
        tmac.nn.QuantLinear.from_codes(codes).dequantize()
    else:
        {
            "round_to_nearest": lambda: tmac.round_to_nearest(np.ones((4, 32), np.float32), SPEC),
            "pack": codes.pack,
            "unpack": lambda: tmac.Codes.from_buffer(buffer),
            "tensors": lambda: tmac.codes.buffer_to_tensors(buffer),
        }[operation]()
    assert counts == [5]
