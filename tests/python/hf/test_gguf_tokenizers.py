"""Tokenizers from metadata against those that transformers makes of the same metadata."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer

from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_arrays import NumberArray
from tmac.formats.gguf_tokenizer import byte_spelling, read_tokenizer

CORPUS = [
    "The quick brown fox doesn't jump; it'LL walk. We've 2024 reasons, 3.14159 and 1,000,000 more.",
    "def f(x):\n    return x ** 2  # squared\n\n\tif not x:\r\n\t\tpass\n",
    "Grüße, façade, naïve e\u0301tude, Ærøskøbing, İstanbul, ﬁne, Ⅳ, ½",
    "你好\uff0c世界\uff01 日本語テキスト と 한국어 텍스트, ภาษาไทย, עברית, العربية",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 and \u200b\u00a0 odd \u3000 spaces   here    and     there      ",
    "  leading spaces\n\n\n   and lines \n \n",
    "",
    " ",
    "<bos>special<eos> <mine> tokens<mine>",
    "\x00\x01\x7f\ufffd",
]
SPECIAL = ["<unk>", "<bos>", "<eos>", "<mine>"]
TYPES = [2, 3, 3, 4]


class Metadata(GgufFile):
    """A file that has nothing but a tokenizer."""

    def __init__(self, path, architecture, tokenizer):
        self.path = path
        self.metadata = {"general.architecture": architecture, **tokenizer}


def keys(tokens, types, **more):
    return {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": NumberArray(np.array(types, np.int32)),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in more.items()},
    }


def trained(pre_tokenizer, alphabet, special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS[:6], trainer)
    content = json.loads(tokenizer.to_str())["model"]
    return sorted(content["vocab"], key=content["vocab"].get), [" ".join(merge) for merge in content["merges"]]


def compare(architecture, tokenizer):
    file = Metadata("made.gguf", architecture, tokenizer)
    ours = Tokenizer.from_str(read_tokenizer(file).text())
    names = {
        "tokens": "tokens",
        "merges": "merges",
        "scores": "scores",
        "token_type": "token_type",
        "model": "tokenizer_type",
        "pre": "pre_tokenizer_type",
    }
    plain = {
        name: list(tokenizer[key]) if isinstance(tokenizer[key], NumberArray) else tokenizer[key]
        for key, name in ((f"tokenizer.ggml.{key}", name) for key, name in names.items())
        if key in tokenizer
    }
    theirs, _ = convert_gguf_tokenizer(architecture, plain)
    for text in [*CORPUS, "\n".join(CORPUS)]:
        found, expected = (each.encode(text, add_special_tokens=False) for each in (ours, theirs))
        assert found.tokens == expected.tokens
        assert found.ids == expected.ids
        assert ours.decode(found.ids, False) == theirs.decode(expected.ids, False)
        assert ours.decode(found.ids, True) == theirs.decode(expected.ids, True)
    known = {index for index in theirs.get_added_tokens_decoder() if index < len(plain["tokens"])}
    assert ours.get_added_tokens_decoder().keys() == known  # not "</s>", which no such file has
    return ours


@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "llama3", "qwen2", "deepseek-r1-qwen", "smaug-bpe"])
def test_byte_level(pre):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens, merges = trained(byte_level, byte_level.alphabet(), SPECIAL)
    types = [3, 3, 3, 4] + [1] * (len(tokens) - 4)
    ours = compare("llama", keys(tokens, types, model="gpt2", pre=pre, merges=merges))
    for text in CORPUS:
        assert ours.decode(ours.encode(text).ids, False) == text


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_sentencepiece(architecture):
    space = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="first")
    names = ["<unk>", "<bos>", "<eos>", "<mine>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens, _ = trained(space, [], names)
    tokens += ["  ", "   "] if architecture == "gemma3" else []
    types = TYPES + [6] * 256 + [1] * (len(tokens) - 260)
    scores = NumberArray(-np.arange(len(tokens), dtype=np.float32))
    made = keys(tokens, types, model="llama", pre="default", scores=scores)
    ours = compare(architecture, made)
    assert ours.encode("The").tokens[0] == "<bos>"


def test_digits_of_smollm_stand_alone():
    """transformers cuts as for GPT-2; the model's own tokenizer and llama.cpp cut digits one by one."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens, merges = trained(byte_level, byte_level.alphabet(), SPECIAL)
    tokens.append("12")
    file = Metadata(
        "made.gguf",
        "llama",
        keys(tokens, TYPES + [1] * (len(tokens) - 4), model="gpt2", pre="smollm", merges=[*merges, "1 2"]),
    )
    ours = Tokenizer.from_str(read_tokenizer(file).text())
    assert ours.encode("x 12", add_special_tokens=False).tokens[-2:] == ["1", "2"]


def test_the_spelling_of_bytes():
    assert sorted(byte_spelling()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    text = "é\x00 \n"
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    assert "".join(byte_spelling()[byte] for byte in text.encode()) == pieces[0][0]
