import os

import numpy as np
import pytest

from tmac import FormatError

LONG = list(range(3, 83))
OPTIONS = {"temperature": 1.0, "ignore_eos": True, "max_new_tokens": 20}


@pytest.fixture
def saved(make_engine, tmp_path):
    """A file with the prompt LONG."""
    path = tmp_path / "prompt.safetensors"
    assert make_engine().save_prompt(path, LONG) == len(LONG)
    return path


@pytest.mark.parametrize("prompt", [LONG, [*LONG, 9], [*LONG[:40], 9]])
def test_a_saved_prompt_gives_the_same_text(make_engine, saved, prompt):
    expected = make_engine().generate(prompt, **OPTIONS)
    engine = make_engine()
    result = engine.generate(prompt, prompt_cache=saved, **OPTIONS)
    assert result.token_ids == expected.token_ids
    assert result.timings.reused_tokens == min(len(prompt) - 1, 80 if prompt[:80] == LONG else 40)
    rows = sum(sum(rows) for phase, rows in engine.decoder.passes if phase == "prompt")
    assert rows == 16 + len(prompt) - result.timings.reused_tokens  # 16: which model it is


def test_it_is_read_once_as_long_as_it_is_kept(make_engine, saved, monkeypatch):
    engine = make_engine()
    first = engine.generate([*LONG, 9], prompt_cache=saved, **OPTIONS)
    monkeypatch.setattr("tmac.runtime.evaluate.read_prompt", None)
    assert engine.generate([*LONG, 9], prompt_cache=str(saved), **OPTIONS).token_ids == first.token_ids
    engine.drop_prompts()
    monkeypatch.undo()


def test_saving_keeps_the_prompt(make_engine, tmp_path):
    engine = make_engine()
    engine.save_prompt(tmp_path / "prompt", LONG)
    assert engine.generate(LONG, **OPTIONS).timings.reused_tokens == 79


def test_a_text_is_saved_as_its_tokens(make_engine, tmp_path):
    engine = make_engine()
    text = "Hello world " * 5
    assert engine.save_prompt(tmp_path / "prompt", text) == len(engine.tokenizer.encode(text))
    other = make_engine()
    assert other.generate(text, prompt_cache=tmp_path / "prompt", **OPTIONS).timings.reused_tokens > 30


def test_nothing_is_left_where_writing_fails(make_engine, tmp_path, monkeypatch):
    path = tmp_path / "prompt"
    path.write_bytes(b"before")

    def fail(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is full"):
        make_engine().save_prompt(path, LONG)
    assert [child.name for child in tmp_path.iterdir()] == ["prompt"]
    assert path.read_bytes() == b"before"


def test_another_model_and_another_cache_are_refused(make_engine, saved):
    for other in (
        make_engine(temperature=9.0),  # other weights
        make_engine(engine={"cache_type": "int8"}),
        make_engine(model={"windows": [0, 4]}),
    ):
        with pytest.raises(
            FormatError, match="fingerprint: this prompt was evaluated by another model or with another"
        ):
            other.generate(LONG, prompt_cache=saved)
        assert not other.decoder.sequences


def test_every_damaged_byte_is_an_error_or_changes_nothing(make_engine, saved, tmp_path):
    engine, content = make_engine(), bytearray(saved.read_bytes())
    expected = engine.generate(LONG, **OPTIONS).token_ids
    header = int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, 8 + header, 60), *rng.integers(8 + header, len(content), 40)]
    refused = 0
    for number, place in enumerate(places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path = tmp_path / f"damaged{number}"
        path.write_bytes(damaged)
        engine.drop_prompts()
        try:
            found = engine.generate(LONG, prompt_cache=path, **OPTIONS).token_ids
        except FormatError as error:
            refused += str(path) in str(error)
        else:
            assert found == expected  # padding of the header
    assert refused >= 8 + 40


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_part_of_a_file_is_refused(make_engine, saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(FormatError, match=saved.name):
        make_engine().generate(LONG, prompt_cache=saved)


def test_a_missing_file_is_an_oserror(make_engine, tmp_path):
    with pytest.raises(FileNotFoundError):
        make_engine().generate(LONG, prompt_cache=tmp_path / "none")


def test_a_state_that_the_decoder_refuses_names_the_file(make_engine, saved, monkeypatch):
    engine = make_engine()

    def refuse(data):
        raise ValueError("of other layers")

    monkeypatch.setattr(engine.decoder, "restore", refuse)
    with pytest.raises(FormatError, match=r"prompt.safetensors: state: the state cannot be restored: of other layers"):
        engine.generate(LONG, prompt_cache=saved)


def test_a_state_of_another_length_is_refused(make_engine, saved, monkeypatch):
    engine = make_engine()
    restore = engine.decoder.restore
    monkeypatch.setattr(engine.decoder, "restore", lambda data: restore(bytes(data)[:100]))
    with pytest.raises(FormatError, match="expected a state of 80 tokens, found"):
        engine.generate(LONG, prompt_cache=saved)
    assert not engine.decoder.sequences


def test_a_full_cache_makes_room_or_says_so(make_engine, saved):
    engine = make_engine(max_positions=110)
    engine.generate([5] * 60, **OPTIONS)
    assert engine.generate([*LONG, 9], prompt_cache=saved, **OPTIONS).timings.reused_tokens == 80
    with pytest.raises(RuntimeError, match="the cache is full"):
        make_engine(max_positions=50).generate([1], prompt_cache=saved)
