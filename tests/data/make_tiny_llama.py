"""Writes tiny_llama.gguf: `python make_tiny_llama.py tiny_llama.gguf`. Random weights, real keys."""

import sys

import gguf
import numpy as np

HIDDEN, FFN, HEADS, KEY_HEADS, LAYERS = 32, 64, 4, 2, 2
MERGES = ["Ġ t", "h e", "i n", "e r", "Ġt he", "o n", "a n", "Ġ a", "r e", "e s", "Ġ Ġ"]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def add_tokenizer(writer: gguf.GGUFWriter) -> int:
    tokens = SPECIAL + byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    return len(tokens)


def add_config(writer: gguf.GGUFWriter) -> None:
    writer.add_block_count(LAYERS)
    writer.add_context_length(1024)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)


def add_tensors(writer: gguf.GGUFWriter, vocab: int) -> None:
    random = np.random.default_rng(0)
    q4, q8 = gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0
    key_rows = HIDDEN // HEADS * KEY_HEADS

    def add(name: str, rows: int, columns: int, kind: gguf.GGMLQuantizationType) -> None:
        weight = (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", random.uniform(0.5, 1.5, HIDDEN).astype(np.float32))

    add("token_embd", vocab, HIDDEN, q8)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        add_norm(f"{block}.attn_norm")
        add(f"{block}.attn_q", HIDDEN, HIDDEN, q4)
        add(f"{block}.attn_k", key_rows, HIDDEN, q4)
        add(f"{block}.attn_v", key_rows, HIDDEN, q4)
        add(f"{block}.attn_output", HIDDEN, HIDDEN, q4)
        add_norm(f"{block}.ffn_norm")
        add(f"{block}.ffn_gate", FFN, HIDDEN, q4)
        add(f"{block}.ffn_up", FFN, HIDDEN, q4)
        add(f"{block}.ffn_down", HIDDEN, FFN, q8)
    add_norm("output_norm")


def main(path: str) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    add_config(writer)
    add_tensors(writer, add_tokenizer(writer))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1])
