"""Checkpoints as other tools write them, of one random layer: for notebook 04 where no real ones are at hand.

Written from the formats' rules (docs/formats.md), with the values that the weights stand for in `ref.npz`.
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

HIDDEN, INNER, VOCABULARY, GROUP = 64, 128, 256, 32
SHAPES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
SHOWN = "mlp.down_proj"


def write_gptq(folder: Path) -> Path:
    """4 bits, groups of 32, symmetric: eight codes in an i32, from the low bits up, along the columns of the weight."""
    rng, tensors, reference = np.random.default_rng(0), {}, {}
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    for name, (n, k) in SHAPES.items():
        codes = rng.integers(0, 16, (n, k), dtype=np.uint32)
        scales = rng.uniform(0.01, 0.02, (n, k // GROUP)).astype(np.float16)
        words = (codes.T.reshape(k // 8, 8, n) << shifts[:, None]).sum(1, dtype=np.uint32)
        place = f"model.layers.0.{name}"
        tensors[f"{place}.qweight"] = words.view(np.int32)
        tensors[f"{place}.qzeros"] = np.full((k // GROUP, n // 8), 0x77777777, np.int32)  # a zero of 8 is stored as 7
        tensors[f"{place}.scales"] = scales.T
        tensors[f"{place}.g_idx"] = np.arange(k, dtype=np.int32) // GROUP
        reference[f"W.{name}"] = (codes.astype(np.float32) - 8) * scales.astype(np.float32).repeat(GROUP, axis=1)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
    return _write(folder, tensors, {**settings, "checkpoint_format": "gptq"}, reference)


def write_bitnet(folder: Path) -> Path:
    """Weights of -1, 0 and 1: four rows, a quarter of the weight apart, in a byte, each as its value plus one."""
    rng, tensors, reference = np.random.default_rng(1), {}, {}
    for name, (n, k) in SHAPES.items():
        values = rng.integers(-1, 2, (n, k), dtype=np.int8)
        rows = (values + 1).astype(np.uint8).reshape(4, n // 4, k)
        place = f"model.layers.0.{name}"
        tensors[f"{place}.weight"] = rows[0] | rows[1] << 2 | rows[2] << 4 | rows[3] << 6
        tensors[f"{place}.weight_scale"] = np.array([20.0], np.float32)  # what the sums are divided by
        reference[f"ternary.{name}"] = values
        reference[f"weight_scale.{name}"] = tensors[f"{place}.weight_scale"]
    settings = {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}
    return _write(folder, tensors, {**settings, "modules_to_not_convert": ["lm_head"]}, reference)


def _write(folder: Path, layers: dict, settings: dict, reference: dict) -> Path:
    rng = np.random.default_rng(2)
    tensors = {
        **layers,
        "model.embed_tokens.weight": rng.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32),
        "lm_head.weight": rng.standard_normal((VOCABULARY, HIDDEN), dtype=np.float32),
    }
    norms = ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")
    tensors |= {f"model.{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "quantization_config": settings,
    }
    folder.mkdir(parents=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}  # save_file ignores strides
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    np.savez(folder / "ref.npz", **reference)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """One token for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
