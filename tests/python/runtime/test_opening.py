"""What is looked at before a model is loaded, and what another model that drafts is loaded with."""

import pytest

import tmac
from tmac.runtime import opening
from tmac.runtime.streaming.memory import parse_memory
from tmac.runtime.streaming.packed_index import BLOCK, NO_CODES, Section
from tmac.runtime.streaming.plan import make_plan


class LoadedError(Exception):
    """A model is being loaded."""


@pytest.fixture
def loads(monkeypatch):
    """(path, options) of what is loaded, which always fails."""
    found = []

    def load(path, **options):
        found.append((path, options))
        raise LoadedError

    monkeypatch.setattr(opening, "load_engine_parts", load)
    return found


def test_a_wrong_limit_or_path_is_told_before_a_draft_is_loaded(loads, tmp_path):
    draft = f"model:{tmp_path}"
    with pytest.raises(ValueError, match="memory_limit: expected a size"):
        tmac.Engine.from_pretrained(tmp_path, draft=draft, memory_limit="a lot")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        tmac.Engine.from_pretrained(tmp_path / "nothing", draft=draft)
    assert loads == []


def test_types_to_round_are_handed_to_the_draft(loads, tmp_path):
    with pytest.raises(LoadedError):
        tmac.Engine.from_pretrained(tmp_path, draft="model:other", requantize=("IQ2_XXS",), progress=False)
    assert loads == [("other", {"requantize": ("IQ2_XXS",), "progress": False})]


@pytest.mark.parametrize("value", ["9" * 400, "9" * 30, "2000000T"])
def test_a_size_beyond_all_memory(value):
    with pytest.raises(ValueError, match="memory_limit: expected a size of at most 1048576T, found '"):
        parse_memory("memory_limit", value)


def test_a_limit_that_is_too_small_names_the_planes_of_the_draft():
    layer = tuple(Section(place * BLOCK, (place + 1) * BLOCK, 0, place + NO_CODES) for place in range(5))
    with pytest.raises(ValueError, match=r"at least \d+M.*; draft=planes:4 keeps so many planes"):
        make_plan(1, [layer], {}, resident_planes=4)
    with pytest.raises(ValueError, match=r"at least \d+M, found 1M \([^;]*;[^;]*; 4M more to be safe\)$"):
        make_plan(1, [layer], {})
