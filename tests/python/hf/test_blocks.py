"""Blocks of a model, one after the other, are the model."""

import gc

import pytest
import torch
from families import CLASSES, FAMILIES, IDS, logits, tiny
from torch import nn

import tmac
from tmac.formats import FormatError, open_checkpoint
from tmac.hf.blocks import open_blocks

EXTRA = {
    "GPT2": {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 256, "vocab_size": 96},
    "Bloom": {"hidden_size": 64, "n_head": 4, "n_layer": 2, "vocab_size": 96},
    "Gemma2": {"head_dim": 16, "final_logit_softcapping": 3.0, "sliding_window": 8},
    "OPT": {"word_embed_proj_dim": 32, "ffn_dim": 96},
}
NAMES = sorted({*FAMILIES, *EXTRA})


@pytest.fixture(autouse=True)
def _more_families(monkeypatch):
    for name, changes in EXTRA.items():
        monkeypatch.setitem(FAMILIES, name, changes)
    monkeypatch.setitem(CLASSES, "GPT2", ("GPT2Config", "GPT2LMHeadModel"))


def chained(source, ids):
    hidden = source.begin(ids)
    with torch.no_grad():
        for index in range(len(source)):
            with source.block(index) as module:
                hidden = source.run(index, module, hidden)
    return hidden


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", NAMES)
def test_a_model_in_memory(family, attention):
    if family in ("Bloom", "Gemma2"):  # which have an implementation of their own, or refuse sdpa
        attention = None
    model = tiny(family, attn_implementation=attention)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = open_blocks(model)
    assert len(source) == 3
    expected = logits(model)
    torch.testing.assert_close(chained(source, IDS), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", NAMES)
def test_a_checkpoint(family, tmp_path):
    model = tiny(family)
    source = open_blocks(saved(model, tmp_path))
    torch.testing.assert_close(chained(source, IDS), logits(model), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "Qwen3"])
def test_bf16_is_widened(family, tmp_path):
    model = tiny(family, torch.bfloat16)
    folder = saved(model, tmp_path)
    expected = logits(type(model).from_pretrained(folder, dtype=torch.float32))
    for source in (open_blocks(model), open_blocks(folder)):
        result = chained(source, IDS)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)
    with open_blocks(model).block(0) as module:
        assert {each.dtype for each in module.parameters()} == {torch.float32}
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["Llama", "Mixtral", "Qwen3", "GPT2", "Phi3"])
def test_a_quantized_checkpoint_is_dequantized(family, tmp_path):
    model = tmac.quantize_(tiny(family), tmac.QuantConfig(bits=4, group_size=16))
    folder = saved(model, tmp_path)
    expected = logits(model.dequantize())
    torch.testing.assert_close(chained(open_blocks(folder), IDS), expected, rtol=1e-4, atol=1e-4)


def test_a_quantized_head_of_its_own_beside_a_tied_embedding(tmp_path):
    model = tmac.quantize_(tiny("Qwen3"), tmac.QuantConfig(bits=4, group_size=16, head_bits=4))
    folder = saved(model, tmp_path)
    expected = logits(model.dequantize())
    torch.testing.assert_close(chained(open_blocks(folder), IDS), expected, rtol=1e-4, atol=1e-4)


def test_a_gguf_file(tiny_gguf):
    expected = logits(tmac.from_pretrained(tiny_gguf, activation="float").dequantize())
    for source in (open_blocks(tiny_gguf), open_blocks(open_checkpoint(tiny_gguf))):
        torch.testing.assert_close(chained(source, IDS), expected, rtol=1e-4, atol=1e-4)


def test_windows_of_other_lengths_and_batches():
    model = tiny("Gemma3")
    source = open_blocks(model)
    for ids in (IDS, IDS[:1], torch.arange(3, 45)[None], IDS):
        torch.testing.assert_close(chained(source, ids), logits(model, ids), rtol=1e-4, atol=1e-4)


def test_layers_come_in_the_order_of_their_use():
    source = open_blocks(tiny("Phi3"))
    start = "model.layers.1."
    names = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert source.layers(1) == tuple(start + name for name in names)
    assert source.layers(2) == ("lm_head",)
    assert source.left_out == ()
    with source.block(1) as module:
        found = source.linears(1, module)
        assert list(found) == list(source.layers(1))
        assert found[start + "mlp.down_proj"] is module.mlp.down_proj


def test_what_is_no_linear_layer_is_named():
    assert "model.layers.0.mlp.experts" in open_blocks(tiny("Mixtral")).left_out
    assert open_blocks(tiny("Mixtral")).layers(0)[0] == "model.layers.0.self_attn.q_proj"
    assert "transformer.h.1.mlp.c_fc" in open_blocks(tiny("GPT2")).left_out


def test_what_is_done_to_a_block_is_gone_when_it_is_left(tmp_path):
    model = tiny("Llama")
    for source in (open_blocks(model), open_blocks(saved(model, tmp_path))):
        with source.block(0) as module:
            module.mlp.up_proj = nn.Identity()
            module.mlp.down_proj.weight = nn.Parameter(torch.zeros(64, 96))
        torch.testing.assert_close(chained(source, IDS), logits(model), rtol=1e-4, atol=1e-4)


def live_bytes(least):
    """Of all float tensors with storage of at least `least` bytes, each storage once."""
    gc.collect()
    found = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor) and not each.is_meta and each.untyped_storage().nbytes() >= least:
            found[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
    return sum(found.values())


@pytest.fixture
def only_new_objects():
    gc.freeze()  # what is there already is not looked at
    yield
    gc.unfreeze()


def test_one_block_is_in_memory_at_a_time(tmp_path, only_new_objects):
    model = tiny("Llama", num_hidden_layers=6)
    folder = saved(model, tmp_path)
    block = sum(4 * each.numel() for each in model.model.layers[0].parameters() if each.dim() > 1)
    del model
    least = 64 * 32 * 4
    before = live_bytes(least)
    source = open_blocks(folder)
    hidden = source.begin(IDS[:1, :4])
    assert live_bytes(least) == before
    kept = []
    for index in range(6):
        with source.block(index) as module, torch.no_grad():
            hidden = source.run(index, module, hidden)
            kept.append(module)
            assert live_bytes(least) - before == block
        assert live_bytes(least) == before


def test_the_fingerprint_is_of_weights_and_configuration(tmp_path):
    model = tiny("Llama")
    first, copy = saved(model, tmp_path / "a"), saved(model, tmp_path / "b")
    assert open_blocks(first).fingerprint == open_blocks(copy).fingerprint
    assert open_blocks(model).fingerprint == open_blocks(tiny("Llama")).fingerprint
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-3
    others = [open_blocks(saved(model, tmp_path / "c")), open_blocks(model), open_blocks(tiny("Llama", rope_theta=5.0))]
    found = {open_blocks(first).fingerprint, open_blocks(tiny("Llama")).fingerprint}
    assert len(found | {other.fingerprint for other in others}) == 5


def test_what_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\[open_blocks\] expected a causal language model .* found Linear"):
        open_blocks(nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError):
        open_blocks(tmp_path / "none")
    folder = saved(tiny("Llama").model, tmp_path / "base")
    with pytest.raises(ValueError, match="has no head"):
        open_blocks(folder)


def test_a_checkpoint_without_one_of_its_tensors(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = saved(tiny("Llama"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors")
    source = open_blocks(folder)
    with source.block(0):
        pass
    with pytest.raises(FormatError, match=name), source.block(1):
        pass
    save_file({**tensors, name: torch.zeros(3, 3)}, folder / "model.safetensors")
    with pytest.raises(FormatError, match=r"expected shape \(96, 64\), found \(3, 3\)"), open_blocks(folder).block(1):
        pass
