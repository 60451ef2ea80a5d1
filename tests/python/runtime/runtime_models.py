"""Tiny random models of each family of the runtime, as transformers makes them."""

import torch
import transformers
from tokenizers import Tokenizer, models

import tmac

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 80,
}
GEMMA = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 24}
# name of the configuration's class -> what is not its default; every class of the models that the runtime decodes
FAMILIES = {
    "Llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "Mistral": {"sliding_window": 9},
    "SmolLM3": {"use_sliding_window": True, "sliding_window": 7, "no_rope_layer_interval": 2},
    "Granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 7.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.1,
    },
    "Qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 3},
    "Qwen3": {"head_dim": 24, "tie_word_embeddings": True},
    "Gemma": {"head_dim": 16},
    "Gemma2": GEMMA,
    "Gemma3Text": GEMMA | {"sliding_window_pattern": 2, "final_logit_softcapping": 20.0},
    "Phi3": {"original_max_position_embeddings": 128, "sliding_window": 11, "partial_rotary_factor": 0.5},
    "GPTNeoX": {"use_parallel_residual": False, "rotary_pct": 0.5},
    "BitNet": {},
    "Mixtral": EXPERTS | {"sliding_window": 13},
    "Qwen2Moe": EXPERTS | {"mlp_only_layers": [1], "norm_topk_prob": True},
    "Qwen3Moe": EXPERTS | {"head_dim": 24, "decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 3},
}
CAUSAL = {"Gemma3Text": "Gemma3ForCausalLM"}


def config_of(family, **changes):
    """A configuration of transformers; `changes` over those of `FAMILIES`."""
    return getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family] | changes)


def model_of(config, seed=0, scale=0.1):
    """A random model with this configuration, whose norms and biases are random too."""
    family = type(config).__name__.removesuffix("Config")
    torch.manual_seed(seed)
    model = getattr(transformers, CAUSAL.get(family, f"{family}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model


def save_low(folder, family="Llama", bits=4, **changes):
    """Saves a random model with layers of so many bits, in groups of 32, and gives the folder."""
    model = tmac.quantize_(model_of(config_of(family, **changes)), tmac.QuantConfig(bits=bits, group_size=32))
    model.save_pretrained(folder)
    return folder


def save_words(folder, words):
    """Saves a tokenizer beside a model: its tokens are these words, the first one for all others."""
    tokens = models.WordLevel({word: token for token, word in enumerate(words)}, unk_token=words[0])
    Tokenizer(tokens).save(str(folder / "tokenizer.json"))
