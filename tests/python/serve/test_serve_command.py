"""`tmac serve`: its options, and a process of its own that signals end."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served_engine import FakeEngine

from tmac import cli

SERVE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from served_engine import FakeEngine
from tmac import cli
from tmac.cli import serve
def load(args, **options):
    engine = FakeEngine(lambda _: "x" * 100)
    engine.held_from = 4 if "held" in args.path else None
    engine.close = lambda: print("closed", file=sys.stderr, flush=True)
    return engine
serve.load_engine = load
sys.exit(cli.main(["serve", *sys.argv[1:]]))
"""


class Process:
    """The command, listening on a port that was free."""

    def __init__(self, *arguments, path="model.gguf", **environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("TMAC_")}
        command = [sys.executable, "-c", SERVE, str(Path(__file__).parent), path, "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**clean, **environment})
        self.log = []
        while not (found := re.search(r"^(\S+) at (http\S+)/v1$", "".join(self.log), re.MULTILINE)):
            line = self.process.stderr.readline()
            assert line, self.log
            self.log.append(line)
        self.name, self.url = found.groups()

    def end(self, number=signal.SIGTERM):
        """Its status, once a signal has ended it."""
        self.process.send_signal(number)
        self.log.append(self.process.communicate(timeout=60)[1])
        return self.process.returncode


@pytest.fixture
def command():
    running = []

    def start(*arguments, **options):
        running.append(Process(*arguments, **options))
        return running[-1]

    yield start
    for server in running:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


def complete(server, **options):
    body = {"model": server.name, "prompt": "a secret", **options}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(command, number):
    server = command()
    assert server.name == "model"
    assert complete(server).json()["choices"][0]["text"] == "x" * 16
    assert server.end(number) == 0
    log = "".join(server.log)
    assert '"POST /v1/completions HTTP/1.1" 200' in log
    assert "secret" not in log
    assert log.endswith("closed\n")
    assert "Traceback" not in log


def test_a_signal_cuts_off_what_does_not_end(command):
    server = command("--shutdown-timeout", "1", path="held.gguf")
    body = {"model": server.name, "prompt": "x", "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as stream:
        lines = (line for line in stream.iter_lines() if line)
        texts = [json.loads(next(lines)[6:])["choices"][0]["text"] for _ in range(3)]
        assert texts == ["x"] * 3
        assert server.end() == 0
        assert json.loads(next(lines)[6:])["error"]["code"] == "unavailable"
        assert list(lines) == []
    log = "".join(server.log)
    assert log.endswith("closed\n")
    assert "Traceback" not in log


def test_it_listens_on_loopback_and_checks_hosts(command):
    server = command()
    assert server.url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{server.url}/health", headers={"Host": "rebound.example.org"}).status_code == 403
    assert "warning" not in "".join(server.log)


def test_other_addresses_get_a_warning(command):
    server = command("--host", "0.0.0.0")
    assert "warning: 0.0.0.0 is open to other machines and there is no API key: set TMAC_API_KEY" in server.log[0]
    address = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{address}/health", headers={"Host": "example.org"}).status_code == 200


@pytest.mark.parametrize(("arguments", "environment"), [(["--api-key", "k"], {}), ([], {"TMAC_API_KEY": "k"})])
def test_a_key(command, arguments, environment):
    server = command("--host", "0.0.0.0", *arguments, **environment)
    address = server.url.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{address}/v1/models").status_code == 401
    assert httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer k"}).status_code == 200
    assert "warning" not in "".join(server.log)


def test_an_empty_key_protects_nothing(monkeypatch, capsys):
    monkeypatch.setenv("TMAC_API_KEY", "")
    assert cli.main(["serve", "model.gguf"]) == 2
    assert "TMAC_API_KEY: expected a key, found nothing" in capsys.readouterr().err
    assert cli.main(["serve", "model.gguf", "--api-key", " "]) == 2
    assert "--api-key: expected a key, found nothing" in capsys.readouterr().err


def test_options(monkeypatch):
    seen = {}
    engine = FakeEngine()
    engine.close = lambda: seen.update(closed=True)
    monkeypatch.setattr(cli.serve, "load_engine", lambda args, **options: seen.update(options) or engine)
    monkeypatch.setattr("tmac.serve.run_server", lambda *args, **options: seen.update(args=args, **options))
    monkeypatch.delenv("TMAC_API_KEY", raising=False)
    options = "--host ::1 --port 9 --model-name a/b --max-requests 3 --max-queued 4 --max-tokens 5 --max-body 6"
    more = "--timeout 7 --shutdown-timeout 8 --cors-origin http://x --no-access-log --cache-positions 10"
    assert cli.main(["serve", "model.gguf", *options.split(), *more.split()]) == 0
    settings = seen["args"][1]
    assert seen["args"][0] is engine
    assert (seen["max_batch"], seen["max_positions"], seen["closed"]) == (3, 10, True)
    assert (seen["host"], seen["port"], seen["shutdown_timeout"], seen["access_log"]) == ("::1", 9, 8, False)
    assert (settings.model_name, settings.max_requests, settings.max_queued) == ("a/b", 3, 4)
    assert (settings.max_tokens, settings.max_body_bytes, settings.request_timeout) == (5, 6, 7.0)
    assert (settings.cors_origins, settings.api_key, settings.hosts) == (("http://x",), None, None)


@pytest.mark.parametrize("options", [["--port", "65536"], ["--port", "x"], ["--max-requests", "0"], []])
def test_wrong_options(options, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["serve", *(["model.gguf", *options] if options else [])])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_such_file(monkeypatch, capsys):
    monkeypatch.delenv("TMAC_API_KEY", raising=False)
    assert cli.main(["serve", "no-such-file.gguf"]) == 2
    assert "there is no file or folder no-such-file.gguf" in capsys.readouterr().err


def test_an_address_that_is_taken(command, capsys, monkeypatch):
    monkeypatch.delenv("TMAC_API_KEY", raising=False)
    engine = FakeEngine()
    engine.close = lambda: None
    monkeypatch.setattr(cli.serve, "load_engine", lambda args, **options: engine)
    port = command().url.rpartition(":")[2]
    assert cli.main(["serve", "model.gguf", "--port", port]) == 2
    assert f"127.0.0.1, port {port}: Address already in use" in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tmac.serve", None)
    assert cli.main(["serve", "model.gguf"]) == 2
    assert "pip install 'tmac-cpu[serve]'" in capsys.readouterr().err
