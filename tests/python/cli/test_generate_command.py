import io
import json
import math

import pytest

from tmac import FormatError, cli


@pytest.fixture
def generate(engine, tmp_path):
    engine.answers = ["Paris is a city"]
    return lambda *arguments: cli.main(["generate", str(tmp_path), *map(str, arguments)])


def test_the_text_is_printed_as_it_comes(engine, generate, capsys):
    assert generate("-p", "Where?") == 0
    printed = capsys.readouterr()
    assert printed.out == "Paris is a city\n"
    assert printed.err == ""
    assert engine.calls == [("Where?", {"max_new_tokens": 128, "stream": True})]
    assert engine.closed == 1


def test_without_a_stream_the_text_is_the_same(engine, generate, capsys):
    assert generate("-p", "Where?", "--no-stream", "--timings") == 0
    printed = capsys.readouterr()
    assert printed.out == "Paris is a city\n"
    assert printed.err == "prompt 10 tokens (4 reused), 12.0 tokens/s; answer 3 tokens, 8.0 tokens/s\n"
    assert engine.calls[0][1]["stream"] is False


def test_every_option_reaches_the_engine(engine, generate, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert (
        generate(
            *("-p", "x", "--threads", 2, "--cache-type", "int8", "-c", 64, "--activation", "float", "--head-bits", 8),
            *("--embedding-bits", 4, "--requantize", "IQ4_XS,Q3_K", "-n", 7, "--temperature", 0.5, "--top-k", 4),
            *("--top-p", 0.9, "--min-p", 0.1, "--repetition-penalty", 1.1, "--presence-penalty", 0.2),
            *("--frequency-penalty", 0.3, "--logit-bias", "5=-inf", "--logit-bias", "6=1.5", "--seed", 9),
            *("--stop", "END", "--stop", "\n\n", "--ignore-eos", "--context-shift"),
            *("--json-schema", schema, "--json", "--logprobs", 2),
        )
        == 0
    )
    assert engine.loaded == {
        "path": str(tmp_path),
        "num_threads": 2,
        "cache_type": "int8",
        "context_length": 64,
        "activation": "float",
        "head_bits": 8,
        "embedding_bits": 4,
        "requantize": ("IQ4_XS", "Q3_K"),
    }
    assert engine.calls[0][1] == {
        "stream": False,
        "max_new_tokens": 7,
        "temperature": 0.5,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "logit_bias": {5: -math.inf, 6: 1.5},
        "seed": 9,
        "stop": ("END", "\n\n"),
        "ignore_eos": True,
        "context_shift": True,
        "json_schema": '{"type": "object"}',
        "logprobs": 2,
    }


def test_what_was_not_said_is_left_to_the_engine(engine, generate, tmp_path):
    assert generate("-p", "x") == 0
    assert engine.loaded == {"path": str(tmp_path), "num_threads": None}


def test_a_random_seed_is_none(engine, generate):
    assert generate("-p", "x", "--seed", "random") == 0
    assert engine.calls[0][1]["seed"] is None


def test_json_has_the_text_and_the_speeds(generate, capsys):
    assert generate("-p", "Where?", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["text"] == "Paris is a city"
    assert found["token_ids"] == [1, 2, 3]
    assert found["finish_reason"] == "stop"
    assert found["prompt_tokens"] == 10
    assert found["timings"]["reused_tokens"] == 4
    assert found["timings"]["prompt_tokens_per_second"] == 12.0
    assert found["timings"]["generated_tokens_per_second"] == 8.0


def test_chat_puts_the_prompt_into_messages(engine, generate):
    assert generate("-p", "Where?", "--chat", "--system", "Be brief.") == 0
    assert engine.calls[0][0] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]


def test_a_prompt_cache_is_written_once_and_then_read(engine, generate, tmp_path):
    engine.answers = ["a", "b", "c"]
    plain, chat = tmp_path / "plain", tmp_path / "chat"
    for _ in range(2):
        assert generate("-p", "Where?", "--prompt-cache", plain) == 0
        assert engine.calls[-1][1]["prompt_cache"] == plain
        assert plain.read_text() in ("Where? True", "read again")
        plain.write_text("read again")
    assert generate("-p", "Where?", "--chat", "--prompt-cache", chat) == 0
    assert chat.read_text() == "<Where?> False"


def test_the_prompt_of_a_file_and_of_standard_input(engine, generate, tmp_path, monkeypatch):
    engine.answers = ["a", "b"]
    path = tmp_path / "prompt.txt"
    path.write_text("Grüße\n", encoding="utf-8")
    assert generate("--file", path) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert generate() == 0
    assert [call[0] for call in engine.calls] == ["Grüße\n", "from a pipe"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", ""], "the prompt is empty"),
        ([], "no prompt"),
        (["--file", "missing.txt"], "missing.txt: No such file"),
        (["-p", "x", "--json-schema", "missing.json"], "missing.json: No such file"),
        (["-p", "x", "--json-schema", __file__], f"{__file__}: Expecting value"),
        (["-p", "x", "--system", "y"], "--system needs --chat"),
        (["-p", "x", "--logprobs", "2"], "--logprobs needs --json"),
    ],
)
def test_what_the_user_can_put_right_is_one_line(generate, arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", Terminal())
    assert generate(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"tmac: error: {message}")
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "option",
    [
        ["--max-new-tokens", "0"],
        ["--threads", "0"],
        ["--cache-type", "int4"],
        ["--activation", "exact"],
        ["--head-bits", "9"],
        ["--head-bits", "ternary"],
        ["--requantize", ","],
        ["--seed", "-1"],
        ["--logit-bias", "5"],
        ["--logit-bias", "x=1"],
        ["--logit-bias", "1=x"],
        ["--temperature", "hot"],
        ["--raw", "--chat"],
        ["--grammar", "a", "--regex", "b"],
        ["--file", "a"],
    ],
)
def test_a_bad_option_is_named(generate, option, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate("-p", "x", *option)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert option[0] in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_a_path_that_is_not_there(capsys):
    assert cli.main(["generate", "./no/such/model", "-p", "x"]) == 2
    assert "there is no file or folder no/such/model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FormatError("model.gguf: blk.0: expected numbers"), "model.gguf: blk.0: expected numbers"),
        (ValueError("temperature: expected a finite number"), "temperature: expected a finite number"),
        (ImportError("No module named 'tokenizers'"), "No module named 'tokenizers'; pip install 'tmac-cpu[engine]'"),
        (MemoryError(), "out of memory"),
    ],
)
def test_what_the_engine_refuses_is_one_line(engine, generate, error, message, capsys):
    engine.load_error = error
    assert generate("-p", "x") == 2
    assert capsys.readouterr().err == f"tmac: error: {message}\n"
    engine.load_error, engine.answers = None, [error]
    assert generate("-p", "x") == 2
    assert capsys.readouterr().err == f"tmac: error: {message}\n"
    assert engine.closed == 1


def test_a_broken_checkpoint_names_its_file(tmp_path, tmac_command):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(4))
    done = tmac_command("generate", path, "-p", "x")
    assert done.returncode == 2
    assert "broken.gguf" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_the_line_and_the_command(engine, generate, capsys):
    engine.answers = [("Paris is", KeyboardInterrupt())]
    assert generate("-p", "Where?") == cli.INTERRUPTED
    printed = capsys.readouterr()
    assert printed.out == "Paris is\n"
    assert printed.err == "interrupted\n"
    assert engine.closed == 1


def test_the_choices_are_the_engines():
    from tmac.cli import arguments
    from tmac.runtime.arguments import CHOICES

    assert {"activation": arguments.ACTIVATIONS, "cache_type": arguments.CACHE_TYPES} == CHOICES
