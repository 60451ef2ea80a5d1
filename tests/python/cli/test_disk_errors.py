"""A disk that fails in the middle of a text is one line, and no end of a conversation."""

import io
import json

import pytest

from tmac import cli
from tmac._core import DamagedFileError
from tmac.cli.engine_options import user_errors
from tmac.cli.errors import CommandError

ERRORS = [RuntimeError("/cache/a.tmac: has changed"), DamagedFileError("/cache/a.tmac: block 3 is damaged")]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_generate_says_it_in_one_line(engine, tmp_path, capsys, error, stream):
    engine.answers = [("Paris is", error) if stream == "--stream" else error]
    assert cli.main(["generate", str(tmp_path), "-p", "Where?", stream]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"tmac: error: {error}\n"
    assert engine.closed == 1


@pytest.mark.parametrize("error", ERRORS)
def test_a_conversation_on_a_terminal_goes_on(engine, tmp_path, monkeypatch, capsys, error):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    path = tmp_path / "talk.json"
    lines = iter(["a", "b", "c", f"/save {path}", "/exit"])
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    engine.answers = ["1", ("Paris is", error), "3"]
    assert cli.main(["chat", str(tmp_path)]) == 0
    assert f"error: {error}\n" in capsys.readouterr().err
    said = [message["content"] for message in json.loads(path.read_text())["messages"]]
    assert said == ["a", "1", "b", "Paris is", "c", "3"]


@pytest.mark.parametrize("error", ERRORS)
def test_a_conversation_in_a_pipe_ends(engine, tmp_path, monkeypatch, capsys, error):
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    engine.answers = [error]
    assert cli.main(["chat", str(tmp_path)]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"tmac: error: {error}\n"


def test_a_damaged_file_is_one_line_in_every_command(monkeypatch, capsys):
    def fail(args):
        raise ERRORS[1]

    monkeypatch.setattr("tmac.cli.info.run", fail)
    assert cli.main(["info"]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"tmac: error: {ERRORS[1]}\n"


@pytest.mark.parametrize("error", [NotImplementedError("x"), RecursionError("x")])
def test_mistakes_of_the_program_keep_their_tracebacks(error):
    with pytest.raises(type(error)), user_errors():
        raise error


def test_a_benchmark_whose_tokens_differ_is_one_line():
    with pytest.raises(CommandError, match="token 3 is 4, expected 5"), user_errors():
        raise RuntimeError("[compare] code: token 3 is 4, expected 5")
