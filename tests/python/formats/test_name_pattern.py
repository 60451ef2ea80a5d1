"""Patterns of module names match what Python's `re` matches, and none of them takes long."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmac.formats.name_pattern import NamePattern

LAYER = "model.layers.18.mlp.experts.3.gate_proj"
# As they stand in gptqmodel's and AutoRound's configurations and documentation.
REAL = [
    r".*\.18\..*gate.*",
    r".*\.(?:1[0-9]|2[0-3])\..*(?:(gate|up|down)_proj)",
    r"^model\.layers\.18\.mlp\.experts\.3\.gate_proj$",
    r"^(?!.*experts).*proj$",
    r"model.layers.18.mlp.experts.\d+.gate_proj",
    r"lm_head",
    r".*layers\.(0|1|2)\.",
    r".*\.experts\.[^.]+\.(gate|up)_proj$",
    r"mlp\.experts",
    r".+?proj{1}",
]


@pytest.mark.parametrize("text", REAL)
@pytest.mark.parametrize("name", [LAYER, "lm_head", "model.layers.1.self_attn.o_proj", "visual.blocks.0.attn.qkv", ""])
def test_real_patterns_match_as_re_does(text, name):
    pattern = NamePattern(text)
    assert pattern.starts(name) == bool(re.match(text, name))
    assert pattern.found_in(name) == bool(re.search(text, name))


ATOMS = st.sampled_from(["a", "b", "c", ".", r"\.", r"\d", r"\w", "[ab]", "[^a]", "[a-c1]", "[]a]", "^", "$", r"[\d.]"])
COUNTS = st.sampled_from(["", "", "", "*", "+", "?", "*?", "{2}", "{1,}", "{,2}", "{0,3}"])


def combine(inner):
    parts = st.lists(st.tuples(inner, COUNTS).map("".join), max_size=4).map("".join)
    groups = st.tuples(
        st.sampled_from(["(", "(?:", "(?=", "(?!"]), st.lists(parts, min_size=1, max_size=3).map("|".join)
    )
    return groups.map(lambda group: f"{group[0]}{group[1]})")


TEXTS = st.lists(st.tuples(st.recursive(ATOMS, combine, max_leaves=6), COUNTS).map("".join), max_size=5).map("".join)


@given(TEXTS, st.text("abc1.", max_size=8))
def test_any_pattern_matches_as_re_does(text, name):
    try:
        expected = re.compile(text)
    except re.error:
        return
    pattern = NamePattern(text)
    assert pattern.starts(name) == bool(expected.match(name)), (text, name)
    assert pattern.found_in(name) == bool(expected.search(name)), (text, name)


@pytest.mark.parametrize("text", [r"(a+)+$", r"(a|a)*b", r".*.*.*.*.*.*.*.*.*.*.*.*x", r"(.*a)*x"])
def test_a_pattern_that_is_exponential_for_re_ends(text):
    assert not NamePattern(text).starts("a" * 2000 + "!")


def test_a_pattern_of_too_many_steps_is_an_error():
    with pytest.raises(ValueError, match="more than 100000 steps"):
        NamePattern("(((a{99}b?){99}c?){99}d?){99}x").starts("a" * 100_000)


NO_PATTERNS = [
    "(",
    ")",
    "a)",
    "[",
    "[a",
    "[]",
    "*",
    "a**",
    "a*+",
    "|*",
    "a{2",
    "a{x}",
    "a{}",
    "\\",
    r"\1",
    r"\b",
    r"[\D]",
]
NO_PATTERNS += ["(?i)a", "(?P<x>a)", "[z-a]", "[a-é]"]


@pytest.mark.parametrize("text", [*NO_PATTERNS, "(" * 1000 + ")" * 1000, "a" * 5000])
def test_what_is_no_pattern_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011
        NamePattern(text)
