"""What is read from the names of modules."""

from tmac.formats.module_names import is_embedding, is_head, is_listed


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
