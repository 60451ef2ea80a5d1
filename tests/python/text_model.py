"""A tiny random llama with a tokenizer of bytes, as a folder."""

import pytest

import tmac

torch = pytest.importorskip("torch", reason="needs the extra tmac-cpu[hf]")
transformers = pytest.importorskip("transformers", reason="needs the extra tmac-cpu[hf]")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra tmac-cpu[engine]")

TEXT = "the quick brown fox jumps over the lazy dog and runs away. " * 20


def save_tokenizer(folder, begins):
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=260, special_tokens=["<s>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    if begins:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


def save_model(folder, begins=False, vocab_size=260, low_bit=False, **changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        **changes,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    if low_bit:
        tmac.quantize_(model, tmac.QuantConfig(bits=4, group_size=32, head_bits=8, activation="float"))
    model.save_pretrained(folder)
    save_tokenizer(folder, begins)
    return folder
