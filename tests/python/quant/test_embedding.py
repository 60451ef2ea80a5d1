"""embedding_bits and head_bits of quantize_, tied and not; fused experts."""

import pytest
import torch
from torch import nn

import tmac
from tmac import QuantConfig
from tmac.nn import QuantEmbedding, QuantExperts, QuantLinear

from .models import Language, tiny_llama

IDS = torch.arange(12).reshape(2, 6)


def bytes_of(model):
    return {module.weight.data_ptr() for module in model.modules() if isinstance(module, (QuantEmbedding, QuantLinear))}


class Named(Language):
    def get_input_embeddings(self):
        return self.embedding


@pytest.mark.parametrize("head_bits", [None, 4])
def test_a_tied_head_shares_the_bytes_of_the_table(head_bits):
    model = tmac.quantize_(Named(tied=True), QuantConfig(embedding_bits=4, head_bits=head_bits))
    assert isinstance(model.embedding, QuantEmbedding)
    assert isinstance(model.head, QuantLinear)
    assert model.head.weight is model.embedding.weight
    assert len(bytes_of(model)) == 2 * 2 + 1 + 1
    assert torch.isfinite(model(IDS)).all()


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_of_other_bits_has_bytes_of_its_own(tied):
    model = tmac.quantize_(Named(tied=tied), QuantConfig(embedding_bits=4, head_bits=8))
    assert (model.embedding.spec.bits, model.head.spec.bits) == (4, 8)
    dense = Named(tied=tied)
    error = (model.head.dequantize() - dense.head.weight).abs().max()
    assert error < (model.embedding.dequantize() - dense.embedding.weight).abs().max()


def test_an_untied_head_stays_float():
    model = tmac.quantize_(Named(), QuantConfig(embedding_bits=4))
    assert isinstance(model.embedding, QuantEmbedding)
    assert isinstance(model.head, nn.Linear)


def test_a_table_can_be_left_alone():
    model = tmac.quantize_(Named(tied=True), QuantConfig(embedding_bits=4, modules_to_not_convert=["embedding"]))
    assert isinstance(model.embedding, nn.Embedding)
    assert model.head.weight is model.embedding.weight


def test_transformers_ties_a_packed_head_again():
    model = tmac.quantize_(tiny_llama(tied=True), QuantConfig(embedding_bits=4))
    with torch.no_grad():
        before = model(IDS).logits
        model.tie_weights()
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model(IDS).logits, before)
    assert model.config.tie_word_embeddings


def test_a_table_that_is_looked_up_in_another_way_is_named():
    class Odd(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids).flip(-1)

    model = Named()
    model.embedding = Odd(50, 64)
    with pytest.raises(ValueError, match=r"rows of embedding \(Odd\) are not looked up as they are"):
        tmac.quantize_(model, QuantConfig(embedding_bits=4))
    assert isinstance(model.layers[0].up, nn.Linear)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_fused_experts_become_packed_ones(family):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"num_local_experts": 4} if family == "Mixtral" else {"num_experts": 4, "moe_intermediate_size": 48}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts_per_tok=2,
        **sizes,
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    dense = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    dense.load_state_dict(model.state_dict())
    tmac.quantize_(model, QuantConfig(activation="float"))
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantExperts)}
    assert len(found) == 2
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, QuantLinear) and ".experts." not in name:
                dense.get_submodule(name).weight.copy_(module.dequantize())
        for name, module in found.items():
            theirs = dense.get_submodule(name)
            for parameter, value in zip((theirs.gate_up_proj, theirs.down_proj), module.dequantize(), strict=True):
                parameter.copy_(value)
        want, got = dense(IDS).logits, model(IDS).logits
    assert (got - want).norm() <= 1e-5 * want.norm()
