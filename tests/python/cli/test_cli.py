import os
import re
import signal
import subprocess
import sys
import time

import pytest

import tmac
from tmac import cli


def test_help_names_every_command(tmac_command):
    done = tmac_command("--help")
    assert done.returncode == 0
    for command in ("info", "demo", "generate", "chat", "bench", "convert", "tune"):
        assert re.search(rf"^ +{command} ", done.stdout, re.MULTILINE)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from tmac.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'rich', 'gguf', 'matplotlib', 'tokenizers', 'jinja2', 'tmac.runtime'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"tmac {tmac.__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["dance"], ["info", "--loud"], ["demo", "--bits", "9"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_programming_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(cli.info, "describe", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["info"])


def test_interruption_in_process(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.info, "describe", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.fixture
def interruptible():
    """Children answer SIGINT even where this run was started in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_demo_without_a_traceback(tiny_gguf):
    command = [sys.executable, "-m", "tmac", "demo", "--tokens", "400000"]
    environment = {**os.environ, "TMAC_DEMO_MODEL": str(tiny_gguf)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        assert process.stdout.readline()  # the first line comes when the model is loaded
        assert process.stdout.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_reader_that_goes_away(tmac_command):
    code = "import sys; from tmac.cli import main; sys.exit(main(['info']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == b""
