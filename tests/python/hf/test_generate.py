"""generate() with every strategy, pipelines, compiling, exporting, and adapters, on low-bit models."""

import json

import pytest
import torch
from families import FAMILIES, IDS, logits, tiny
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline
from transformers.generation import GenerationConfig

import tmac
from tmac import QuantConfig, TMACConfig
from tmac.nn import QuantLinear

PROMPT = IDS[:1, :6]
NEW = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}
DENSE = [family for family in FAMILIES if not family.endswith(("Moe", "Mixtral"))]


def low(family="Llama", seed=0, **changes):
    """Head and embedding are low-bit too."""
    return tmac.quantize_(tiny(family, seed=seed, **changes), QuantConfig(head_bits=8, embedding_bits=4))


def loop(model, steps=8):
    """Greedy tokens without a cache."""
    ids = PROMPT
    for _ in range(steps):
        scores = logits(model, ids)[:, -1]
        scores[:, 2] = -torch.inf  # min_new_tokens keeps the end away
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_with_each_cache(family):
    model = low(family)
    want = loop(model)
    for cache in ("dynamic", "static"):
        got = model.generate(PROMPT, do_sample=False, cache_implementation=cache, **NEW)
        assert torch.equal(got, want), cache


@pytest.mark.parametrize("family", DENSE)
def test_every_strategy_gives_tokens(family):
    model = low(family)
    greedy = model.generate(PROMPT, do_sample=False, **NEW)
    assert torch.equal(model.generate(PROMPT, do_sample=False, prompt_lookup_num_tokens=2, **NEW), greedy)
    assert torch.equal(model.generate(PROMPT, do_sample=False, assistant_model=low(family, seed=1), **NEW), greedy)
    torch.manual_seed(3)
    first = model.generate(PROMPT, do_sample=True, num_return_sequences=2, **NEW)
    torch.manual_seed(3)
    assert torch.equal(model.generate(PROMPT, do_sample=True, num_return_sequences=2, **NEW), first)
    beams = model.generate(PROMPT, do_sample=False, num_beams=3, num_return_sequences=2, **NEW)
    assert first.shape == beams.shape == (2, 14)
    scores = [nn.functional.log_softmax(logits(model, each), -1) for each in (beams[:1], greedy)]
    best, plain = (
        sum(float(score[0, at - 1, each[0, at]]) for at in range(6, 14))
        for score, each in zip(scores, (beams, greedy), strict=True)
    )
    assert best >= plain - 1e-3


def test_pipeline(tmp_path):
    vocabulary = {f"w{index}": index for index in range(96)}
    data = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w3"},
        "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="w0", eos_token="w2")
    low().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    generator = pipeline("text-generation", model=str(tmp_path), device_map="cpu")
    assert isinstance(generator.model.lm_head, QuantLinear)
    text = generator("w5 w6", generation_config=GenerationConfig(do_sample=False, **NEW))[0]["generated_text"]
    assert text.startswith("w5 w6")
    assert tmac.load_tokenizer(tmp_path)("w5 w6")["input_ids"] == [5, 6]


@pytest.mark.parametrize("family", ["Llama", "Gemma3", "GPTNeoX"])
def test_compiled_and_exported(family):
    model = low(family)
    want = logits(model)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(IDS, use_cache=False).logits, want)

        class Plain(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, ids):
                return self.model(ids, use_cache=False).logits

        program = torch.export.export(Plain(), (IDS,), strict=False)
        assert torch.equal(program.module()(IDS), want)
    assert any("tmac.embedding" in str(node.target) for node in program.graph.nodes)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT's use of transformers
@pytest.mark.parametrize("family", ["Llama", "Phi3", "GPTNeoX"])
def test_lora_on_top(tmp_path, family):
    peft = pytest.importorskip("peft")
    tiny(family).save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TMACConfig(bits=4))
    want = logits(model)
    names = {"Llama": ["q_proj", "down_proj"], "Phi3": ["qkv_proj"], "GPTNeoX": ["query_key_value"]}[family]
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    assert not torch.equal(logits(adapted), want)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), want)
    adapted.train()
    adapted(IDS, labels=IDS).loss.backward()
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    for name, parameter in adapted.named_parameters():
        if name in trained:
            assert parameter.grad.abs().sum() > 0, name
    adapted.eval()
    changed = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TMACConfig(bits=4))
    assert torch.equal(logits(peft.PeftModel.from_pretrained(again, tmp_path / "adapter")), changed)
    with pytest.raises(ValueError, match="dequantize"):
        adapted.merge_and_unload()
