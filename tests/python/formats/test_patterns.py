"""Patterns for module names: those that people write match, those that never end are refused."""

import pytest

from tmac.formats.module_names import is_embedding, is_head, is_listed
from tmac.formats.patterns import matches

NAME = "model.language_model.layers.17.block_sparse_moe.experts.5.gate_proj"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r".*gate_proj", True),
        (r".*\.layers\.(0|1|2|17|31)\..*", True),
        (r"model\.language_model\.layers\.\d+\.block_sparse_moe\.experts\.[0-9]+\.(gate|up)_proj$", True),
        (r".*layers.*experts.*gate.*", True),
        (r"gate_proj", False),
        (r"^model\.layers", False),
        (r"(?:.*)[.]gate_(proj)?$", True),
        (r"(?!.*lm_head)model", True),
    ],
)
def test_patterns_that_people_write(pattern, found):
    assert matches(pattern, NAME) is found


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a+)+$", "without repeated groups"),
        ("(.*){5}b", "without repeated groups"),
        (r"(a*)\1", "without repeated groups or references"),
        (r"(?P<x>a*)(?P=x)b", "without references"),
        (r"(a)?(?(1)b|c)", "without references"),
        (".*" * 8 + "!", "fewer repeats"),
        ("(e|e)" * 40 + "!", "fewer repeats and choices"),
        ("e?" * 40 + "!", "fewer repeats and choices"),
        ("(", "expected a regular expression"),
        ("a{99999999999999999999}", "expected a regular expression"),
        ("a" * 5000, "at most 4096 characters"),
    ],
)
def test_patterns_that_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        matches(pattern, NAME)


def test_what_is_not_converted():
    """The rules of transformers: the beginning up to a dot, a pattern, or the end of a name."""
    name = "model.layers.11.mlp.gate_proj"
    assert is_listed(name, ["lm_head", "gate_proj"])
    assert is_listed(name, ["model.layers.11"])
    assert is_listed(name, [r"model\.layers\.\d+"])
    assert is_listed(name, ["layers.11.mlp.gate_proj"])
    assert is_listed(name, ["model.layers."])
    assert is_listed(name, [".*mlp."])
    assert is_listed(name, ["lm_head|model"])
    assert not is_listed(name, ["lm_head|layers"])
    assert not is_listed(name, ["model.layers.1"])
    assert not is_listed(name, ["mlp.gate"])
    assert not is_listed(name, [])
    assert is_listed("layer.1.attn", ["layer.1"])
    assert not is_listed("layer.11.attn", ["layer.1"])


def test_heads_and_embeddings():
    assert is_head("lm_head")
    assert is_head("embed_out")
    assert not is_embedding("embed_out")
    for name in (
        "model.embed_tokens",
        "transformer.wte",
        "gpt_neox.embed_in",
        "bert.embeddings.word_embeddings",
        "shared",
    ):
        assert is_embedding(name), name
    assert not is_embedding("model.layers.0.mlp.up_proj")
