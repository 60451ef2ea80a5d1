"""Small checkpoints made for the tests."""

import json

import numpy as np
from safetensors.numpy import save_file

from tmac import QuantSpec, round_to_nearest
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, StoredTensor

OFFSET = QuantSpec(4, 32, zero_point="offset")
SPECS = {
    "model.layers.0.mlp.up_proj": OFFSET,
    "model.layers.0.mlp.down_proj": OFFSET,
    "model.layers.0.self_attn.q_proj": QuantSpec(3, 64, zero_point="integer"),
    "model.layers.0.self_attn.k_proj": QuantSpec(2, 32, "ternary"),
    "model.layers.0.self_attn.v_proj": QuantSpec(1, -1, zero_point="real", scale_format="f32"),
    "model.layers.0.self_attn.o_proj": QuantSpec(8, 32, fixed_zero=127.5, activation="float"),
    "model.embed_tokens": QuantSpec(5, 32, zero_point="offset"),
}


def codes(spec, n, k, *, seed=0, perm=False, bias=False):
    """A random weight, rounded."""
    rng = np.random.default_rng(seed)
    made = round_to_nearest(rng.standard_normal((n, k), dtype=np.float32), spec)
    parts = {"perm": rng.permutation(k).astype(np.int32)} if perm else {}
    parts |= {"bias": rng.standard_normal(n, dtype=np.float32)} if bias else {}
    return type(made)(spec, made.codes, made.scales, made.zeros, **parts)


def layer(name, made, kind="linear"):
    return QuantizedLayer(
        name, made.spec, *made.codes.shape, made.bias is not None, made.codes.nbytes, lambda: made, kind
    )


def tensor(name, dtype, array):
    return StoredTensor(name, dtype, array.shape, array.nbytes, lambda: array)


def mixed(path, specs=None, k=52, **more):
    """A checkpoint with a layer of every kind; `k` columns, which fill neither the last byte nor the last group."""
    made = {
        name: codes(spec, 9 + index, k, seed=index, perm=index == 0, bias=index < 2)
        for index, (name, spec) in enumerate((specs or SPECS).items())
    }
    layers = {
        name: layer(name, each, "embedding" if name.endswith("embed_tokens") else "linear")
        for name, each in made.items()
    }
    rng = np.random.default_rng(7)
    tensors = [
        tensor("model.norm.weight", "BF16", rng.integers(0, 2**15, 51).astype(np.uint16)),
        tensor("lm_head.weight", "F16", rng.standard_normal((5, 51)).astype(np.float16)),
        tensor("model.table", "I64", np.arange(6).reshape(2, 3)),
        tensor("model.flag", "BOOL", np.array(True)),
        tensor("model.small", "F8_E4M3", np.arange(3, dtype=np.uint8)),
        tensor("model.nothing", "F32", np.zeros((0, 4), np.float32)),
    ]
    config = {"model_type": "llama", "hidden_size": k}
    return Checkpoint("made", path, config, layers, {each.name: each for each in tensors}, **more)


def float_model(folder, *, hidden=64, vocab=40, layers=2, tie=False, dtype=np.float16, seed=0):
    """A folder with a random llama, as Hugging Face writes it."""
    rng = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(layers):
        start = f"model.layers.{index}"
        shapes |= {f"{start}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        shapes |= {f"{start}.mlp.{name}_proj.weight": (2 * hidden, hidden) for name in ("gate", "up")}
        shapes[f"{start}.mlp.down_proj.weight"] = (hidden, 2 * hidden)
        shapes |= {f"{start}.{name}_layernorm.weight": (hidden,) for name in ("input", "post_attention")}
    if not tie:
        shapes["lm_head.weight"] = (vocab, hidden)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "vocab_size": vocab,
        "tie_word_embeddings": tie,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}', encoding="utf-8")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}', encoding="utf-8")
    return folder


def same_codes(left, right):
    """Whether two weights are the same, bit for bit."""
    if left.spec != right.spec:
        return False
    for name in ("codes", "scales", "zeros", "perm", "bias"):
        ours, theirs = getattr(left, name), getattr(right, name)
        if (ours is None) != (theirs is None):
            return False
        if ours is not None and (ours.dtype != theirs.dtype or not np.array_equal(ours, theirs)):
            return False
    return True
