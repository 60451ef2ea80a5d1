"""Tiny random models of each family, and what the tests of tmac.hf share."""

import torch
import transformers

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
FAMILIES = {
    "Llama": {"attention_bias": True},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "Gemma3": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "Phi3": {"original_max_position_embeddings": 256},
    "GPTNeoX": {},
    "BitNet": {},
    "Mixtral": EXPERTS,
    "Qwen2Moe": EXPERTS,
    "Qwen3Moe": EXPERTS | {"head_dim": 16},
}
CLASSES = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM")}
IDS = torch.arange(3, 35).reshape(2, 16)


def tiny(family, dtype=torch.float32, seed=0, **changes):
    """A random model of a family, with biases and norms that are not their initial zeros and ones."""
    config_name, class_name = CLASSES.get(family, (f"{family}Config", f"{family}ForCausalLM"))
    config = getattr(transformers, config_name)(**SIZES | FAMILIES[family] | changes)
    torch.manual_seed(seed)
    model = getattr(transformers, class_name)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.mul_(4)  # random logits that differ, so that greedy tokens do not hang on rounding
    return model.to(dtype)


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def assert_same_state(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name
