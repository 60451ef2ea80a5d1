"""The smallest checkpoint of every format, as {file name: bytes}: where hostile files and fuzzing start from."""

import json
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import mixed

from tmac.formats.tmac_writer import write_checkpoint

LAYER = "model.layers.0.mlp.up_proj"
NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "uint16": "BF16", "int32": "I32", "int64": "I64", "float16": "F16",
    "float32": "F32", "float64": "F64",
}  # fmt: skip


def safetensors_bytes(tensors, metadata=None):
    """A safetensors file; u16 arrays are bf16."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in tensors.items():
        header[name] = {
            "dtype": NAMES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + b"".join(array.tobytes() for array in tensors.values())


def model(tensors, quantization=None, **config):
    """A folder with `config.json` and one file of tensors, an untouched one among them."""
    tensors = {**tensors, "model.norm.weight": np.array([0x3F80, 0x4000], np.uint16)}
    files = {"model.safetensors": safetensors_bytes(tensors, {"format": "pt"})}
    if quantization is not None or config:
        content = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1, **config}
        if quantization is not None:
            content["quantization_config"] = quantization
        files["config.json"] = json.dumps(content).encode()
    return files


def words(rng, *shape):
    return rng.integers(-(2**31), 2**31, shape).astype(np.int32)


def halves(rng, *shape):
    return rng.uniform(0.5, 1, shape).astype(np.float16)


def tensors_of(**parts):
    return {f"{LAYER}.{name}": array for name, array in parts.items()}


def floats():
    rng = np.random.default_rng(0)
    parts = {f"model.layers.0.mlp.{name}_proj.weight": halves(rng, 8, 8) for name in ("up", "down")}
    return [model({**parts, "lm_head.weight": halves(rng, 5, 8)}, architectures=["LlamaForCausalLM"])]


def tmac():
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for index, shard in enumerate((10**9, 500)):
            out = Path(folder, str(index))
            write_checkpoint(mixed(Path(folder), k=11, tied={"head": "model.embed_tokens"}), out, max_shard_bytes=shard)
            found.append({each.name: each.read_bytes() for each in out.iterdir()})
        return found


def gptq():
    rng = np.random.default_rng(1)
    found = []
    for bits, group, act_order in ((4, 32, True), (3, 64, False), (2, -1, False), (8, 32, True)):
        groups = 1 if group == -1 else 64 // group
        g_idx = rng.permutation(np.arange(64) * groups // 64).astype(np.int32)
        parts = tensors_of(
            qweight=words(rng, 64 * bits // 32, 32),
            qzeros=words(rng, groups, 32 * bits // 32),
            scales=halves(rng, groups, 32),
            g_idx=g_idx if act_order else np.sort(g_idx),
            bias=halves(rng, 32),
        )
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act_order, "sym": bits == 2}
        found.append(model(parts, {**config, "checkpoint_format": "gptq_v2" if bits == 8 else "gptq"}))
    return found


def awq():
    rng = np.random.default_rng(2)
    parts = tensors_of(qweight=words(rng, 64, 4), qzeros=words(rng, 2, 4), scales=halves(rng, 2, 32))
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    return [model(parts, config)]


def autoround():
    rng = np.random.default_rng(3)
    config = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int"}
    gptq = tensors_of(qweight=words(rng, 8, 32), qzeros=words(rng, 2, 4), scales=halves(rng, 2, 32))
    awq = tensors_of(qweight=words(rng, 64, 4), qzeros=words(rng, 2, 4), scales=halves(rng, 2, 32))
    packings = {"auto_round:auto_gptq": gptq, "auto_round": gptq, "auto_round:auto_awq": awq}
    return [model(parts, {**config, "packing_format": name}) for name, parts in packings.items()]


def compressed_tensors():
    rng = np.random.default_rng(4)
    found = []
    for bits, strategy, group, sym in ((4, "group", 32, False), (8, "channel", None, True)):
        weights = {"num_bits": bits, "strategy": strategy, "group_size": group, "symmetric": sym, "type": "int"}
        groups = 64 // group if group else 1
        parts = {
            "weight_packed": words(rng, 32, 64 * bits // 32),
            "weight_scale": rng.integers(0x3F00, 0x3F80, (32, groups)).astype(np.uint16),
            "weight_shape": np.array([32, 64], np.int64),
        }
        if not sym:
            parts["weight_zero_point"] = words(rng, 32 * bits // 32, groups)
        config = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear", "re:.*up_proj"], "weights": weights}},
            "ignore": ["lm_head"],
            "version": "0.20.0",
        }
        found.append(model(tensors_of(**parts), config))
    return found


def hqq():
    rng = np.random.default_rng(5)
    found = []
    for bits, packing, rows in ((4, "4bit_u8", 16), (3, "3bit_32", 4), (1, "1bit_u8", 4)):
        parts = tensors_of(
            W_q=rng.integers(0, 256, (rows, 64)).astype(np.int32 if bits == 3 else np.uint8),
            scale=halves(rng, 32, 1),
            zero=halves(rng, 32, 1),
            shape=np.array([32, 64]),
            nbits=np.array([bits]),
            group_size=np.array([64]),
            axis=np.array([1]),
            packing=np.frombuffer(packing.encode(), np.uint8),
        )
        found.append(model(parts))
    return found


def bitnet():
    rng = np.random.default_rng(6)
    packed = sum(rng.integers(0, 3, (8, 16)) << (2 * part) for part in range(4)).astype(np.uint8)
    offline = tensors_of(weight=packed, weight_scale=halves(rng, 1))
    online = tensors_of(weight=halves(rng, 32, 16))
    return [
        model(offline, {"quant_method": "bitnet", "linear_class": "bitlinear", "quantization_mode": "offline"}),
        model(offline, {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}),
        model(online, {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}),
    ]


def gguf():
    """A llama of one layer whose tensors have a type each."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.constants import GGML_QUANT_SIZES

    rng = np.random.default_rng(7)
    found = []
    kinds = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16")
    names = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for start in (0, 6):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.gguf")
            writer = GGUFWriter(path, "llama")
            for key, value in (("block_count", 1), ("embedding_length", 256), ("feed_forward_length", 256)):
                writer.add_uint32(f"llama.{key}", value)
            for key, value in (("attention.head_count", 2), ("attention.head_count_kv", 2), ("context_length", 64)):
                writer.add_uint32(f"llama.{key}", value)
            writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre("smollm")
            writer.add_token_list(["a", "b", "ab", "</s>"])
            writer.add_token_types([1, 1, 1, 3])
            writer.add_token_merges(["a b"])
            writer.add_eos_token_id(3)
            writer.add_tensor("token_embd.weight", halves(rng, 4, 256))
            writer.add_tensor("output_norm.weight", np.ones(256, np.float32))
            for index, name in enumerate(names):
                kind = GGMLQuantizationType[kinds[start + index]]
                block, nbytes = GGML_QUANT_SIZES[kind]
                raw = np.full((256, 256 // block * nbytes), 0x11, np.uint8)
                writer.add_tensor(f"blk.0.{name}.weight", raw, raw_dtype=kind)
            for name in ("attn_norm", "ffn_norm"):
                writer.add_tensor(f"blk.0.{name}.weight", np.ones(256, np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            found.append({"model.gguf": path.read_bytes()})
    return found


FORMATS = {
    "float": floats,
    "tmac": tmac,
    "gptq": gptq,
    "awq": awq,
    "auto-round": autoround,
    "compressed-tensors": compressed_tensors,
    "hqq": hqq,
    "bitnet": bitnet,
    "gguf": gguf,
}


def write_files(folder, files):
    """The files in a folder, which is made; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
