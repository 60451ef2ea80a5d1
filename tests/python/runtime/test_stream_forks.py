"""What children of a process do with a model whose weights are read while it runs: none of them may hang."""

import os
import subprocess
import sys

import pytest
from runtime_models import save_low

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

FORKS = """
import gc, os, signal, sys, threading, time
sys.path.insert(0, {tests!r})
import pytest
from streamed import open_streamed, streaming
streaming(pytest.MonkeyPatch())
SLOW = 400_000
SECONDS = 20
PROMPT = [1, 2, 3]


def refused(act):
    try:
        act()
    except RuntimeError as error:
        return "forked child" in str(error)
    return False


def run(child):
    number = os.fork()
    if number == 0:
        child()
        os._exit(4)
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, (child.__name__, status)
            return
        time.sleep(0.02)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    raise SystemExit(child.__name__ + " hangs")


def drop():
    global engine
    del engine
    gc.collect()
    os._exit(0)


def leave():
    sys.exit(0)


def use():
    model = engine.streamed._model
    acts = [lambda: engine.logits(PROMPT), model.stream_statistics, lambda: model.limit_stream(0)]
    os._exit(0 if all(refused(act) for act in acts) else 3)


def use_beside():
    from tmac import _core
    import numpy as np

    decoder = _core.Decoder(engine.streamed._model)
    sequence, ids = decoder.create(), np.array(PROMPT, np.int32)
    act = lambda: decoder.forward([sequence], [ids], "prompt", [ids[:0]], num_threads=1)
    os._exit(0 if refused(act) else 3)


engine = open_streamed({model!r})
wanted = engine.logits(PROMPT)
for child in (use, drop, leave):
    run(child)
engine.streamed.slow_down(SLOW)
passes = threading.Thread(target=lambda: [engine.logits(PROMPT) for _ in range(5)])
passes.start()
time.sleep(0.3)
for child in (use_beside, drop):  # while another thread is in mid-pass
    run(child)
engine.streamed.slow_down(0)
passes.join()
assert (engine.logits(PROMPT) == wanted).all()
engine.close()
print("done")
"""


def test_no_child_hangs(tmp_path, repository, monkeypatch):
    save_low(tmp_path / "model", hidden_size=128, intermediate_size=256)
    monkeypatch.setenv("TMAC_CACHE_DIR", str(tmp_path / "cache"))
    tests = str(repository / "tests" / "python" / "runtime")
    code = FORKS.format(tests=tests, model=str(tmp_path / "model"))
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("done\n")
