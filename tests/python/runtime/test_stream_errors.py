"""What may happen to a packed file, or to who reads it, while a model runs."""

import _thread
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runtime_models import save_low
from streamed import open_streamed, replaced_descriptor, streaming

import tmac
from tmac import _core

PROMPT = [5, 9, 33, 71, 12, 6]
SLOW = 400_000  # bytes a second: a pass takes about a second
SNAIL = SLOW / 100
SOON = 20.0  # seconds in which something ends that would take minutes, however busy the machine is

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_low(tmp_path_factory.mktemp("model"), hidden_size=128, intermediate_size=256)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path))
    streaming(monkeypatch)
    return tmp_path / "packed"


@pytest.fixture
def engine(checkpoint):
    with open_streamed(checkpoint) as engine:
        yield engine


@pytest.fixture(scope="module")
def wanted(checkpoint):
    with tmac.Engine.from_pretrained(checkpoint) as engine:
        return engine.logits(PROMPT)


def packed_path(folder):
    (path,) = folder.iterdir()
    return path


def changed(path, offset, keep_time):
    """Flips a bit."""
    status = path.stat()
    with path.open("rb+") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def sections(engine_or_path):
    from tmac.runtime.streaming.packed_index import read_index

    with engine_or_path.open("rb") as file:
        return read_index(file, engine_or_path.stat().st_size)


def repeat(engine, count):
    """Passes: the first ones may use what was read before."""
    for _ in range(count):
        engine.logits(PROMPT)


def in_mid_pass(engine, act, rate=SLOW):
    """Does something while a slow pass runs; what the pass raises is raised."""
    engine.streamed.slow_down(rate)
    timer = threading.Timer(0.3, act)
    timer.start()
    try:
        repeat(engine, 3)
    finally:
        timer.join()
        engine.streamed.slow_down(0)


def test_a_file_that_becomes_shorter(engine, folder):
    path = packed_path(folder)
    with pytest.raises(RuntimeError, match=r"shorter|changed") as error:
        in_mid_pass(engine, lambda: os.truncate(path, 8192))
    assert str(path) in str(error.value)
    with pytest.raises(RuntimeError, match="shorter"):
        engine.logits(PROMPT)


def test_a_file_that_is_changed(engine, folder):
    path = packed_path(folder)
    with pytest.raises(RuntimeError, match="was changed") as error:
        in_mid_pass(engine, lambda: changed(path, path.stat().st_size - 1, keep_time=False))
    assert str(path) in str(error.value)


def test_damage_that_nobody_admits(checkpoint, folder, wanted):
    """Found at the first reading, by its checksum."""
    with open_streamed(checkpoint):
        path = packed_path(folder)
    for layer in (sections(path).layers[0], sections(path).layers[-1]):
        for section in layer:
            changed(path, section.end - 1 - (section.end - section.begin) // 2, keep_time=True)
            with open_streamed(checkpoint) as engine, pytest.raises(_core.DamagedFileError, match="delete") as error:
                engine.logits(PROMPT)
            assert str(path) in str(error.value)
            changed(path, section.end - 1 - (section.end - section.begin) // 2, keep_time=True)
    with open_streamed(checkpoint) as engine:
        assert np.array_equal(engine.logits(PROMPT), wanted)


def test_damage_in_what_is_resident_makes_the_file_anew(checkpoint, folder, wanted, monkeypatch):
    streaming(monkeypatch, whole=1)
    with open_streamed(checkpoint):
        path = packed_path(folder)
    index, content = sections(path), path.read_bytes()
    for section in (index.top[0], index.layers[-1][1]):
        changed(path, section.begin + 200, keep_time=True)
        with open_streamed(checkpoint) as engine:
            assert np.array_equal(engine.logits(PROMPT), wanted)
        assert path.read_bytes() == content


def test_a_head_of_another_version_makes_the_file_anew(checkpoint, wanted, monkeypatch):
    from tmac.runtime.streaming import packed_writer

    with monkeypatch.context() as patch:
        patch.setattr(packed_writer.PackedWriter, "_head", _foreign_head(packed_writer.PackedWriter._head))
        patch.setattr(_core.ModelBuilder, "add_placed", lambda *_: None)
        with pytest.raises(ValueError, match="missing"):
            open_streamed(checkpoint)
    with open_streamed(checkpoint) as engine:
        assert np.array_equal(engine.logits(PROMPT), wanted)


def _foreign_head(original):
    def head(self, packed):
        number = original(self, packed)
        for content, (at, known) in self._heads.items():
            self._heads[content] = at, type(known)(b"TMACPKW0" + known.content[8:], *list(vars(known).values())[1:])
        return number

    return head


@linux
@pytest.mark.parametrize(("other", "message"), [("/", "Is a directory"), ("/proc/self/mem", "Input/output error")])
def test_a_read_that_fails(engine, folder, wanted, other, message):
    path = packed_path(folder)
    with replaced_descriptor(path, other), pytest.raises(RuntimeError, match=message) as error:
        repeat(engine, 3)
    assert str(path) in str(error.value)
    assert np.array_equal(engine.logits(PROMPT), wanted)  # the disk is there again


def test_a_file_that_is_deleted_or_replaced_can_still_be_read(engine, folder, wanted):
    path = packed_path(folder)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[::-1])
    assert np.array_equal(engine.logits(PROMPT), wanted)


def test_ctrl_c_in_mid_pass(engine, wanted):
    begin = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        in_mid_pass(engine, _thread.interrupt_main, SNAIL)
    assert time.perf_counter() - begin < SOON
    for _ in range(2):
        assert np.array_equal(engine.logits(PROMPT), wanted)


def test_ctrl_c_in_mid_text(engine, checkpoint):
    engine.streamed.slow_down(SNAIL)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPT, max_new_tokens=50, ignore_eos=True)
    timer.join()
    engine.streamed.slow_down(0)
    found = engine.generate(PROMPT, max_new_tokens=8, ignore_eos=True).token_ids
    with tmac.Engine.from_pretrained(checkpoint) as other:
        assert found == other.generate(PROMPT, max_new_tokens=8, ignore_eos=True).token_ids


def test_closed_in_mid_read(checkpoint):
    """By Ctrl-C in a pass that would take minutes, and then at once."""
    engine = open_streamed(checkpoint)
    engine.streamed.slow_down(SNAIL)
    timer = threading.Timer(0.3, _thread.interrupt_main)
    begin = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        engine.logits(PROMPT)
    engine.close()
    del engine
    gc.collect()
    assert time.perf_counter() - begin < SOON


def test_closed_while_another_thread_generates(checkpoint):
    engine = open_streamed(checkpoint)
    engine.streamed.slow_down(SLOW)
    request = engine.submit(PROMPT, max_new_tokens=50, ignore_eos=True)
    time.sleep(0.3)
    begin = time.perf_counter()
    engine.close()
    assert request.result().finish_reason == "cancelled"
    assert time.perf_counter() - begin < SOON  # the pass that runs comes to its end


def threads():
    """All of this process, those of the core too."""
    return len(list(Path("/proc/self/task").iterdir()))


@linux
@pytest.mark.usefixtures("wanted")
def test_dropped_while_it_reads_ahead(checkpoint):
    """The readers of a model that nobody has any more end at once."""
    gc.collect()
    before = threads()  # with those that passes of a model in memory have
    engine = open_streamed(checkpoint)
    engine.logits(PROMPT)
    engine.streamed.slow_down(SNAIL / 100)
    assert threads() > before
    begin = time.perf_counter()
    engine.close()
    del engine
    gc.collect()
    assert time.perf_counter() - begin < SOON
    while threads() > before:  # one that has been joined is seen for a moment longer
        assert time.perf_counter() - begin < SOON
        time.sleep(0.01)


FORK = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import pytest
from streamed import open_streamed, streaming
streaming(pytest.MonkeyPatch())
with open_streamed({model!r}) as engine:
    engine.logits([1, 2, 3])
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            engine.logits([1, 2, 3])
        except RuntimeError as error:
            os._exit(0 if "forked child" in str(error) else 3)
        os._exit(4)
    _, status = os.waitpid(child, 0)
    engine.logits([1, 2, 3])
    sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_gets_an_error(checkpoint, repository):
    code = FORK.format(tests=str(repository / "tests" / "python" / "runtime"), model=str(checkpoint))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_signals_reach_python_while_it_waits(engine):
    """Not only Ctrl-C: handlers run in mid-pass."""
    before, begin = signal.signal(signal.SIGTERM, lambda *_: 1 // 0), time.perf_counter()
    try:
        with pytest.raises(ZeroDivisionError):
            in_mid_pass(engine, lambda: os.kill(os.getpid(), signal.SIGTERM), SNAIL)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert time.perf_counter() - begin < SOON
