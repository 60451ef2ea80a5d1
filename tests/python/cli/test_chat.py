import io
import json

import pytest

from tmac import cli
from tmac.cli.conversation import Conversation
from tmac.cli.errors import CommandError

SPEEDS = "[prompt 10 tokens (4 reused), 12.0 tokens/s; answer 3 tokens, 8.0 tokens/s]\n"


@pytest.fixture
def pipe(engine, tmp_path, monkeypatch):
    """`pipe(text, *options)` runs the command with `text` as its standard input."""

    def run(text, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        return cli.main(["chat", str(tmp_path), *map(str, options)])

    return run


@pytest.fixture
def terminal(engine, tmp_path, monkeypatch):
    """`terminal(lines)` types lines; an exception among them happens at the prompt."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    def run(*lines, options=()):
        typed = iter(lines)
        prompts = []

        def read(prompt):
            prompts.append(prompt)
            line = next(typed, EOFError())
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", read)
        return cli.main(["chat", str(tmp_path), *options]), prompts

    return run


def contents(call):
    return [message["content"] for message in call[0]]


def test_a_conversation_through_a_pipe(engine, pipe, capsys):
    engine.answers = ["Paris is nice", "Yes, very"]
    assert pipe("Where?\nReally?\n") == 0
    printed = capsys.readouterr()
    assert printed.out == "Paris is nice\nYes, very\n"
    assert printed.err == SPEEDS * 2
    assert contents(engine.calls[0]) == ["Where?"]
    assert contents(engine.calls[1]) == ["Where?", "Paris is nice", "Really?"]
    assert [message["role"] for message in engine.calls[1][0]] == ["user", "assistant", "user"]
    assert engine.calls[0][1] == {"stream": True, "max_new_tokens": None}
    assert engine.closed == 1


def test_without_a_stream_the_answer_comes_at_once(engine, pipe, capsys):
    engine.answers = ["Paris is nice"]
    assert pipe("Where?", "--no-stream") == 0
    assert capsys.readouterr().out == "Paris is nice\n"


def test_undo_reset_and_system(engine, pipe):
    engine.answers = ["1", "2", "3", "4", "5"]
    text = "a\nb\n/undo\nc\n/system Be brief.\nd\n/reset\ne\n/exit\nf\n"
    assert pipe(text, "--system", "Be polite.") == 0
    assert [contents(call) for call in engine.calls] == [
        ["Be polite.", "a"],
        ["Be polite.", "a", "1", "b"],
        ["Be polite.", "a", "1", "c"],
        ["Be brief.", "a", "1", "c", "3", "d"],
        ["Be brief.", "e"],
    ]


def test_a_system_message_can_be_taken_away(engine, pipe):
    engine.answers = ["1"]
    assert pipe("/system\na\n", "--system", "Be polite.") == 0
    assert contents(engine.calls[0]) == ["a"]


def test_messages_of_several_lines(engine, pipe):
    engine.answers = ["1", "2", "3"]
    assert pipe('one\\\ntwo\n"""\nthree\n\nfour\n"""\n"""five"""\n\n   \n') == 0
    assert [contents(call)[-1] for call in engine.calls] == ["one\ntwo", "three\n\nfour", "five"]


def test_save_and_load(engine, pipe, tmp_path, capsys):
    engine.answers = ["1", "2", "3"]
    path = tmp_path / "talk.json"
    assert pipe(f"a\n/save {path}\n", "--system", "s") == 0
    assert [message["content"] for message in json.loads(path.read_text())["messages"]] == ["s", "a", "1"]
    assert pipe(f"/load {path}\nb\n") == 0
    assert contents(engine.calls[1]) == ["s", "a", "1", "b"]
    assert pipe("c\n", "--load", path) == 0
    assert contents(engine.calls[2]) == ["s", "a", "1", "c"]
    capsys.readouterr()


def test_help_lists_every_command(pipe, capsys):
    from tmac.cli.chat import COMMANDS

    assert pipe("/help\n") == 0
    printed = capsys.readouterr().err
    assert all(command in printed for command in COMMANDS)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/undo", "/undo: there is nothing to forget"),
        ("/dance", "unknown command /dance"),
        ("/save", "/save needs the name of a file"),
        ("/load", "/load needs the name of a file"),
        ("/load no/such/file", "no/such/file: No such file"),
        ("/save no/such/file", "no/such/file: No such file"),
    ],
)
def test_a_wrong_command_ends_a_pipe_but_not_a_terminal(engine, pipe, terminal, line, message, capsys):
    assert pipe(f"{line}\nb\n") == 2
    assert capsys.readouterr().err.startswith(f"tmac: error: {message}")
    assert engine.calls == []
    engine.answers = ["1"]
    assert terminal(line, "b")[0] == 0
    assert f"error: {message}" in capsys.readouterr().err
    assert contents(engine.calls[0]) == ["b"]


def test_an_error_of_the_engine_keeps_the_session_and_forgets_the_question(engine, terminal, capsys):
    engine.answers = [ValueError("the prompt has 9000 tokens"), "2"]
    assert terminal("a", "b")[0] == 0
    assert "error: the prompt has 9000 tokens\n" in capsys.readouterr().err
    assert contents(engine.calls[1]) == ["b"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(engine, terminal, capsys):
    engine.answers = [("Paris is", KeyboardInterrupt()), "2"]
    assert terminal("a", "b")[0] == 0
    printed = capsys.readouterr()
    assert printed.out == "Paris is\n2\n"
    assert "[stopped]" in printed.err
    assert engine.cancelled == 1
    assert contents(engine.calls[1]) == ["a", "Paris is", "b"]


def test_ctrl_c_before_the_first_word_forgets_the_question(engine, terminal):
    engine.answers = [KeyboardInterrupt(), "2"]
    assert terminal("a", "b")[0] == 0
    assert contents(engine.calls[1]) == ["b"]


def test_ctrl_c_at_the_prompt_forgets_the_line(engine, terminal):
    engine.answers = ["1"]
    status, prompts = terminal("a\\", KeyboardInterrupt(), "b")
    assert status == 0
    assert contents(engine.calls[0]) == ["b"]
    assert prompts == ["> ", "... ", "> ", "> "]


def test_ctrl_c_in_a_pipe_ends_the_command(engine, pipe, capsys):
    engine.answers = [("Paris is", KeyboardInterrupt())]
    assert pipe("a\nb\n") == cli.INTERRUPTED
    assert capsys.readouterr().out == "Paris is\n"
    assert engine.closed == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"messages": 3}',
        '{"messages": [3]}',
        '{"messages": [{"role": "user", "content": "a"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
        '{"messages": [{"role": "system", "content": 3}]}',
        '{"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}',
    ],
)
def test_a_file_that_is_no_conversation_is_named(tmp_path, text):
    path = tmp_path / "talk.json"
    path.write_text(text)
    with pytest.raises(CommandError, match=r"talk\.json: expected a"):
        Conversation.load(path)
