"""The commands with a real model and the real engine, a process each."""

import json
import os
import re
import subprocess
import sys

import pytest

PROMPT = "The capital of France is"

# Standard input becomes the session's terminal, whose Ctrl-C is a signal even where this run ignores it.
ON_A_TERMINAL = """
import fcntl, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGINT, signal.default_int_handler)
from tmac.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def expected(smollm2):
    """What the engine says of the prompt."""
    pytest.importorskip("tokenizers", reason="needs the extra tmac-cpu[engine]")
    from tmac.runtime.engine import Engine

    with Engine.from_pretrained(smollm2) as engine:
        return engine.generate(PROMPT, max_new_tokens=8)


def test_generate_prints_what_the_engine_says(smollm2, expected, tmac_command):
    streamed = tmac_command("generate", smollm2, "-p", PROMPT, "-n", 8, "--threads", 1)
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout == expected.text + "\n"
    whole = json.loads(tmac_command("generate", smollm2, "-p", PROMPT, "-n", 8, "--json").stdout)
    assert whole["text"] == expected.text
    assert whole["token_ids"] == expected.token_ids


def test_a_prompt_cache_changes_no_token(smollm2, tmac_command, tmp_path):
    prompt, path = f"{PROMPT} Paris. " * 5, tmp_path / "prompt.cache"
    runs = [tmac_command("generate", smollm2, "-p", prompt, "-n", 8, "--prompt-cache", path, "--json") for _ in "12"]
    first, second = (json.loads(run.stdout) for run in runs)
    assert first["token_ids"] == second["token_ids"]
    assert second["timings"]["reused_tokens"] > 0


def test_a_turn_evaluates_what_is_new(smollm2, tmac_command):
    command = [sys.executable, "-m", "tmac", "chat", str(smollm2), "-n", "8"]
    talk = "Hello, my name is Ann.\nWhat is my name?\n"
    done = subprocess.run(command, input=talk, capture_output=True, text=True, timeout=300, check=True)
    first, second = re.findall(r"prompt (\d+) tokens(?: \((\d+) reused\))?", done.stderr)
    assert first[1] == ""
    assert int(second[1]) >= int(first[0])
    assert len(done.stdout.splitlines()) >= 2


@pytest.mark.skipif(os.name == "nt", reason="a terminal of POSIX")
def test_ctrl_c_stops_an_answer_on_a_terminal_and_ctrl_d_ends(smollm2):
    import pty

    main, other = pty.openpty()
    command = [sys.executable, "-c", ON_A_TERMINAL, "chat", str(smollm2), "--ignore-eos"]
    process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, start_new_session=True)
    os.close(other)
    try:
        read_until(main, b"> ")
        os.write(main, b"Count to one thousand.\n")
        read_until(main, b"\r\n")
        read_until(main, b" ")  # of the answer
        os.write(main, b"\x03")
        read_until(main, b"[stopped]")
        read_until(main, b"> ")
        os.write(main, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main)


def read_until(descriptor, text):
    import select

    found = b""
    while text not in found:
        assert select.select([descriptor], [], [], 120)[0], found
        found += os.read(descriptor, 1)
    return found
