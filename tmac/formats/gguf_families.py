"""The families of models that GGUF files are read of: the names and shapes of their tensors.

Names, and what the converter does to the values, are those of convert_hf_to_gguf.py and gguf-py's tensor_mapping.py.
"""

from __future__ import annotations

from tmac.formats import gguf_configs as configs
from tmac.formats.gguf_family import Family, Part

Table = dict[str, Part]


def _top(norm_shift: float = 0.0) -> Table:
    return {
        "token_embd.weight": Part("model.embed_tokens.weight", ("vocab", "hidden"), "embedding"),
        "output_norm.weight": Part("model.norm.weight", ("hidden",), "plain", shift=norm_shift),
        "output.weight": Part("lm_head.weight", ("vocab", "hidden"), optional=True),
    }


def _attention(*, order: bool = False, bias: bool = False) -> Table:
    """Four projections. `order`: queries and keys lie in rotary pairs. `bias`: queries, keys and values need one."""
    queries, keys = ("queries", "keys") if order else ("", "")
    return {
        "attn_q.weight": Part("self_attn.q_proj.weight", ("q", "hidden"), rows=queries),
        "attn_k.weight": Part("self_attn.k_proj.weight", ("kv", "hidden"), rows=keys),
        "attn_v.weight": Part("self_attn.v_proj.weight", ("kv", "hidden")),
        "attn_output.weight": Part("self_attn.o_proj.weight", ("hidden", "q")),
        "attn_q.bias": Part("self_attn.q_proj.bias", ("q",), "plain", not bias, queries),
        "attn_k.bias": Part("self_attn.k_proj.bias", ("kv",), "plain", not bias, keys),
        "attn_v.bias": Part("self_attn.v_proj.bias", ("kv",), "plain", not bias),
    }


def _norms(names: dict[str, str], shift: float = 0.0, size: str = "hidden") -> Table:
    return {f"{ours}.weight": Part(f"{theirs}.weight", (size,), "plain", shift=shift) for ours, theirs in names.items()}


LLAMA_NORMS = _norms({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"})
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
OUTPUT_BIAS = {"attn_output.bias": Part("self_attn.o_proj.bias", ("hidden",), "plain", optional=True)}
MLP: Table = {
    "ffn_gate.weight": Part("mlp.gate_proj.weight", ("ffn", "hidden")),
    "ffn_up.weight": Part("mlp.up_proj.weight", ("ffn", "hidden")),
    "ffn_down.weight": Part("mlp.down_proj.weight", ("hidden", "ffn")),
}
MLP_BIASES: Table = {
    f"ffn_{name}.bias": Part(f"mlp.{name}_proj.bias", (size,), "plain", optional=True)
    for name, size in (("gate", "ffn"), ("up", "ffn"), ("down", "hidden"))
}


def _experts(size: str) -> Table:
    """A router and three stacks of matrices."""
    return {
        "ffn_gate_inp.weight": Part("mlp.gate.weight", ("experts", "hidden"), "plain"),
        "ffn_gate_exps.weight": Part("mlp.experts.{}.gate_proj.weight", (size, "hidden"), stack=True),
        "ffn_up_exps.weight": Part("mlp.experts.{}.up_proj.weight", (size, "hidden"), stack=True),
        "ffn_down_exps.weight": Part("mlp.experts.{}.down_proj.weight", ("hidden", size), stack=True),
    }


SHARED_EXPERT: Table = {
    "ffn_gate_inp_shexp.weight": Part("mlp.shared_expert_gate.weight", ("one", "hidden"), "plain"),
    "ffn_gate_shexp.weight": Part("mlp.shared_expert.gate_proj.weight", ("shared_ffn", "hidden")),
    "ffn_up_shexp.weight": Part("mlp.shared_expert.up_proj.weight", ("shared_ffn", "hidden")),
    "ffn_down_shexp.weight": Part("mlp.shared_expert.down_proj.weight", ("hidden", "shared_ffn")),
}


def _affine(ours: str, theirs: str, size: str = "hidden") -> Table:
    return {f"{ours}.{part}": Part(f"{theirs}.{part}", (size,), "plain") for part in ("weight", "bias")}


def _with_bias(ours: str, theirs: str, shape: tuple[str, str], rows: str = "") -> Table:
    return {
        f"{ours}.weight": Part(f"{theirs}.weight", shape, rows=rows),
        f"{ours}.bias": Part(f"{theirs}.bias", shape[:1], "plain", optional=True, rows=rows),
    }


GEMMA_NORMS = _norms({"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}, shift=1.0)
GEMMA2_NORMS = _norms(
    {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    shift=1.0,
)
SUB_NORMS: Table = {
    **_norms({"attn_sub_norm": "self_attn.attn_sub_norm"}),
    **_norms({"ffn_sub_norm": "mlp.ffn_sub_norm"}, size="ffn"),
}
LLAMA_BLOCK: Table = {**LLAMA_NORMS, **_attention(order=True), **OUTPUT_BIAS}
QWEN3_BLOCK: Table = {**LLAMA_NORMS, **_attention(), **OUTPUT_BIAS, **_norms(HEAD_NORMS, size="head")}
QWEN2_BLOCK: Table = {**LLAMA_NORMS, **_attention(bias=True)}
GEMMA2_BLOCK: Table = {**GEMMA2_NORMS, **_attention(), **MLP}
BITNET_BLOCK: Table = {**LLAMA_NORMS, **_attention(), **MLP, **SUB_NORMS}
PHI3_BLOCK: Table = {
    **LLAMA_NORMS,
    "attn_qkv.weight": Part("self_attn.qkv_proj.weight", ("qkv", "hidden")),
    "attn_output.weight": Part("self_attn.o_proj.weight", ("hidden", "q")),
    "ffn_up.weight": Part("mlp.gate_up_proj.weight", ("gate_up", "hidden")),
    "ffn_down.weight": Part("mlp.down_proj.weight", ("hidden", "ffn")),
}
NEOX_TOP: Table = {
    "token_embd.weight": Part("gpt_neox.embed_in.weight", ("vocab", "hidden"), "embedding"),
    **_affine("output_norm", "gpt_neox.final_layer_norm"),
    "output.weight": Part("lm_head.weight", ("vocab", "hidden"), optional=True),
}
NEOX_BLOCK: Table = {
    **_affine("attn_norm", "input_layernorm"),
    **_affine("ffn_norm", "post_attention_layernorm"),
    **_with_bias("attn_qkv", "attention.query_key_value", ("qkv", "hidden"), "neox"),
    **_with_bias("attn_output", "attention.dense", ("hidden", "hidden")),
    **_with_bias("ffn_up", "mlp.dense_h_to_4h", ("ffn", "hidden")),
    **_with_bias("ffn_down", "mlp.dense_4h_to_h", ("hidden", "ffn")),
}
FREQUENCIES = ("rope_freqs.weight",)
FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")

# general.architecture -> family; `llama` with experts is "mixtral".
FAMILIES = {
    "llama": Family(
        "LlamaForCausalLM", "llama", _top(), {**LLAMA_BLOCK, **MLP, **MLP_BIASES}, configs.llama, constants=FREQUENCIES
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        "mixtral",
        _top(),
        {**LLAMA_NORMS, **_attention(order=True), **_experts("ffn")},
        configs.mixtral,
        constants=FREQUENCIES,
    ),
    "qwen2": Family("Qwen2ForCausalLM", "qwen2", _top(), {**QWEN2_BLOCK, **MLP}, configs.qwen2),
    "qwen3": Family("Qwen3ForCausalLM", "qwen3", _top(), {**QWEN3_BLOCK, **MLP}, configs.qwen3),
    "qwen2moe": Family(
        "Qwen2MoeForCausalLM",
        "qwen2_moe",
        _top(),
        {**QWEN2_BLOCK, **_experts("expert_ffn"), **SHARED_EXPERT},
        configs.qwen2_moe,
    ),
    "qwen3moe": Family(
        "Qwen3MoeForCausalLM", "qwen3_moe", _top(), {**QWEN3_BLOCK, **_experts("expert_ffn")}, configs.qwen3_moe
    ),
    "gemma": Family("GemmaForCausalLM", "gemma", _top(1.0), {**GEMMA_NORMS, **_attention(), **MLP}, configs.gemma),
    "gemma2": Family("Gemma2ForCausalLM", "gemma2", _top(1.0), GEMMA2_BLOCK, configs.gemma2),
    "gemma3": Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        _top(1.0),
        {**GEMMA2_BLOCK, **_norms(HEAD_NORMS, 1.0, "head")},
        configs.gemma3,
    ),
    "phi3": Family("Phi3ForCausalLM", "phi3", _top(), PHI3_BLOCK, configs.phi3, constants=FACTORS),
    "gptneox": Family(
        "GPTNeoXForCausalLM",
        "gpt_neox",
        NEOX_TOP,
        NEOX_BLOCK,
        configs.gpt_neox,
        prefix="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
    ),
    "bitnet": Family("BitNetForCausalLM", "bitnet", _top(), BITNET_BLOCK, configs.bitnet("silu")),
    "bitnet-b1.58": Family("BitNetForCausalLM", "bitnet", _top(), BITNET_BLOCK, configs.bitnet("relu2")),
    "bitnet-25": Family("BitNetForCausalLM", "bitnet", _top(), BITNET_BLOCK, configs.bitnet("relu2")),
}
