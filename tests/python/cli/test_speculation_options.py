"""`--draft`, `--memory-limit` and what the commands tell of them."""

import io
import json

import pytest

from tmac import cli
from tmac.runtime.speculation.stats import SpeculationStats

ONE = SpeculationStats(
    "ngram", 4, 7, 0, [3, 2], [2, 1], [0, 3, 2, 0], draft_seconds=0.25, verify_seconds=1.0, plain_seconds=0.5
)
OTHER = SpeculationStats("planes:4", 2, 5, 3, [2, 1, 1], [2, 1, 0], [2, 2], 1.0, 2.0, 0.0, 0.125, 3_000_000, "it broke")
ONE_LINES = """\
draft ngram: 1.75 tokens per pass (7 in 4), 0 passes of the draft
accepted by depth: 67 % of 3, 50 % of 2
guesses per pass: 0 in 2, 2 in 1, 3 in 1
draft 0.25 s, verification 1.00 s, plain passes 0.50 s
"""
OTHER_LINES = """\
draft planes:4: 2.50 tokens per pass (5 in 2), 3 passes of the draft
accepted by depth: 100 % of 2, 100 % of 1, 0 % of 1
guesses per pass: 2 in 2
draft 1.00 s, verification 2.00 s, plain passes 0.00 s, of it 0.12 s for the disk
the draft failed, and the text went on without it: it broke
"""


class Streamed:
    """As `Engine.streamed`: every call has read more."""

    def __init__(self):
        self.calls = 0

    def statistics(self):
        self.calls += 1
        return {"bytes_read": 2_000_000 * self.calls, "seconds_reading": self.calls, "seconds_waiting": self.calls / 4}


@pytest.fixture
def generate(engine, tmp_path):
    engine.answers = ["Paris is a city"]
    engine.speculation = [ONE]
    return lambda *arguments: cli.main(["generate", str(tmp_path), "-p", "x", *map(str, arguments)])


@pytest.fixture
def chat(engine, tmp_path, monkeypatch):
    engine.answers, engine.speculation = ["Paris", "Yes"], [ONE, OTHER]
    monkeypatch.setattr("sys.stdin", io.StringIO("Where?\nReally?\n"))
    return lambda *arguments: cli.main(["chat", str(tmp_path), *map(str, arguments)])


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_the_options_reach_the_engine(command, engine, generate, chat, tmp_path):
    run = generate if command == "generate" else chat
    assert run("--draft", "ngram+planes:4", "--memory-limit", "1.5G") == 0
    assert engine.loaded == {
        "path": str(tmp_path),
        "num_threads": None,
        "draft": "ngram+planes:4",
        "memory_limit": "1.5G",
    }


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_statistics_follow_the_text(generate, capsys, stream):
    assert generate(stream, "--stats") == 0
    printed = capsys.readouterr()
    assert printed.out == "Paris is a city\n"
    assert printed.err == ONE_LINES


def test_every_answer_of_a_chat_has_its_statistics(chat, capsys):
    assert chat("--stats") == 0
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert "".join(line for line in lines if not line.startswith("[")) == ONE_LINES + OTHER_LINES
    assert [place for place, line in enumerate(lines) if line.startswith("[")] == [0, 5]


def test_without_a_draft_there_is_nothing_to_tell(engine, generate, capsys):
    engine.speculation = []
    assert generate("--stats") == 0
    assert capsys.readouterr().err == "no draft guessed, and nothing was read from a disk\n"


def test_what_was_read_for_a_text(engine, generate, capsys):
    engine.streamed, engine.speculation = Streamed(), []
    assert generate("--stats") == 0
    assert capsys.readouterr().err == "disk: 2.0 MB read in 1.00 s, for which passes waited 0.25 s\n"
    assert engine.streamed.calls == 2


def test_a_file_has_all_texts_and_their_sum(chat, tmp_path):
    path = tmp_path / "stats.json"
    assert chat("--stats-json", path) == 0
    content = json.loads(path.read_text())
    assert content["texts"] == [ONE.to_dict(), OTHER.to_dict()]
    assert content["streaming"] is None
    total = content["total"]
    assert (total["passes"], total["tokens"], total["tokens_per_pass"], total["draft_passes"]) == (6, 12, 2.0, 3)
    assert (total["drafted"], total["accepted"]) == ([5, 3, 1], [4, 2, 0])
    assert total["budgets"] == [0, 3, 2, 0, 2, 2]
    assert (total["draft_seconds"], total["verify_seconds"], total["plain_seconds"]) == (1.25, 3.0, 0.5)
    assert (total["io_seconds"], total["bytes_read"], total["error"]) == (0.125, 3_000_000, "it broke")


def test_json_has_the_statistics(engine, generate, capsys):
    engine.streamed = Streamed()
    assert generate("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["speculation"] == ONE.to_dict()
    assert found["streaming"]["bytes_read"] > 0


def test_json_without_a_draft(engine, generate, capsys):
    engine.speculation = []
    assert generate("--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["speculation"], found["streaming"]) == (None, None)


@pytest.mark.parametrize("guessed", [True, False])
def test_a_picture(engine, generate, tmp_path, guessed):
    pytest.importorskip("matplotlib", reason="needs the extra tmac-cpu[demo]")
    if not guessed:
        engine.speculation = []
    path = tmp_path / "stats.png"
    assert generate("--stats-plot", path) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir()] == ["stats.png"]


def test_the_picture_shows_every_pass_and_depth():
    pytest.importorskip("matplotlib", reason="needs the extra tmac-cpu[demo]")
    from matplotlib.figure import Figure

    from tmac.cli import speculation_plot

    left, right = Figure().subplots(1, 2)
    speculation_plot._draw_budgets(left, {"a": ONE, "b": OTHER})
    speculation_plot._draw_acceptance(right, {"a": ONE, "b": OTHER})
    assert [list(line.get_ydata()) for line in left.lines] == [ONE.budgets, OTHER.budgets]
    assert [list(line.get_ydata()) for line in right.lines] == [[pytest.approx(200 / 3), 50], [100, 100, 0]]
    assert [text.get_text()[:1] for text in left.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("option", ["--stats-json", "--stats-plot"])
def test_a_folder_that_is_not_there_is_found_before_the_model_is_loaded(engine, generate, option, capsys):
    assert generate(option, "no/such/file") == 2
    assert capsys.readouterr().err == f"tmac: error: {option} no/such/file: there is no such folder\n"
    assert engine.loaded == {}


@pytest.mark.parametrize("option", ["--stats-json", "--stats-plot"])
def test_a_file_that_cannot_be_written(engine, generate, option, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert generate(option, tmp_path / "folder") == 2
    assert f"tmac: error: {tmp_path / 'folder'}: Is a directory" in capsys.readouterr().err
    assert engine.closed == 1


def test_without_matplotlib(engine, generate, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert generate("--stats-plot", tmp_path / "x.png") == 2
    assert "--stats-plot needs matplotlib: pip install matplotlib" in capsys.readouterr().err
    assert engine.loaded == {}


def test_what_the_engine_says_of_a_draft_is_one_line(tiny_gguf, capsys):
    assert cli.main(["generate", str(tiny_gguf), "-p", "x", "--draft", "plane:4"]) == 2
    assert "draft: expected 'ngram', 'planes:K'" in capsys.readouterr().err


def test_a_draft_changes_no_byte(tiny_gguf, capsys):
    arguments = ["generate", str(tiny_gguf), "-p", "a b a b a b", "-n", "60", "--ignore-eos", "--json"]
    assert cli.main(arguments) == 0
    plain = json.loads(capsys.readouterr().out)
    assert cli.main([*arguments, "--draft", "ngram"]) == 0
    guessed = json.loads(capsys.readouterr().out)
    assert guessed["token_ids"] == plain["token_ids"]
    assert plain["speculation"] is None
    assert guessed["speculation"]["tokens"] == 59
