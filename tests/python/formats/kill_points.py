"""Converts again and again in children that are killed at some line of the writer, and looks at what they left.

Run as `python kill_points.py FOLDER KILLS SEED`; the folder has the checkpoints `a` and `b` (of our format). Children
are forked while this process has no threads. Prints what was seen as one JSON object; an assertion ends it.
"""

import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

from tmac.formats import new_folder, open_checkpoint, safetensors_writer, tmac_writer

TRACED = {module.__file__ for module in (new_folder, safetensors_writer, tmac_writer, shutil)}


def contents(folder):
    return {each.name: each.read_bytes() for each in folder.iterdir()} if folder.exists() else None


def write(source, out, exchange):
    if not exchange:
        new_folder._exchange = lambda *_: False
    tmac_writer.write_checkpoint(open_checkpoint(source), out, force=True, max_shard_bytes=4000)


def count_lines(kill_at, counter):
    lock = threading.Lock()

    def trace(frame, event, _):
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            with lock:
                counter[0] += 1
                if counter[0] == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)


def in_child(work, *arguments, seconds=None):
    """Runs `work(*arguments)` in a child and returns whether it came to its end; after `seconds` it is killed."""
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001  a child must not go on
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, status
    return not os.WIFSIGNALED(status)


def traced(source, out, kill_at, exchange, report=None):
    counter = [0]
    count_lines(kill_at, counter)
    write(source, out, exchange)
    if report is not None:
        report.write_text(str(counter[0]))


def main(folder, kills, seed):
    random.seed(seed)
    out = folder / "out"
    states, lines, seconds, report = {}, {}, {}, folder / "lines"
    for name in ("a", "b", "a", "b"):  # the first replaces nothing
        started = time.monotonic()
        in_child(write, folder / name, out, True)
        seconds[name] = time.monotonic() - started
        in_child(traced, folder / name, out, 0, True, report)
        states[name], lines[name] = contents(out), int(report.read_text())
    assert states["a"] != states["b"]
    before, seen = "b", {"old": 0, "new": 0, "none": 0, "killed": 0}
    for kill in range(kills):
        exchange = kill % 4 != 3
        source = "a" if before == "b" else "b"
        if kill % 3 == 2:
            finished = in_child(write, folder / source, out, exchange, seconds=random.uniform(0, 1.2 * seconds[source]))
        else:
            at = random.randint(1, lines[source]) if kill % 3 else lines[source] - random.randint(0, 99)
            finished = in_child(traced, folder / source, out, at, exchange)
        found = contents(out)
        state = next((name for name, content in states.items() if content == found), None)
        assert found is None or state is not None, f"a mixture: {sorted(found)}"
        assert not finished or state == source
        assert found is not None or not exchange, "an exchange leaves no moment without a folder"
        seen["killed"] += not finished
        seen["none" if state is None else "new" if state == source else "old"] += 1
        if state is None:  # the next run brings it back before it does anything else
            in_child(new_folder.clear_stale, out)
            assert contents(out) == states[before]
            state = before
        before = state
    in_child(write, folder / "a", out, True)
    assert contents(out) == states["a"]
    left = {each.name for each in folder.iterdir()} - {"a", "b", "out", "lines"}
    assert not left, left
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
