import numpy as np
import pytest

from tmac.formats import FormatError
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_arrays import NumberArray
from tmac.formats.gguf_tokenizer import read_tokenizer


class Edited(GgufFile):
    """The tiny file with some metadata replaced; None removes a key."""

    def __init__(self, path, **changes):
        super().__init__(path)
        merged = {**self.metadata, **{f"tokenizer.{key.replace('__', '.')}": value for key, value in changes.items()}}
        self.metadata = {key: value for key, value in merged.items() if value is not None}


def test_content(tiny_gguf):
    tokenizer = read_tokenizer(GgufFile(tiny_gguf))
    assert tokenizer.special == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }
    assert [token["content"] for token in tokenizer.json["added_tokens"]] == [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
    ]
    assert len(tokenizer.json["model"]["vocab"]) == 270
    assert "add_generation_prompt" in tokenizer.chat_template


def test_optional_keys(tiny_gguf):
    file = Edited(tiny_gguf, chat_template=None, ggml__padding_token_id=None, ggml__add_bos_token=True)
    tokenizer = read_tokenizer(file)
    assert tokenizer.chat_template is None
    assert "pad_token" not in tokenizer.special
    assert tokenizer.json["post_processor"]["special_tokens"]["<|im_start|>"]["ids"] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "llama"}, "byte-level BPE tokenizer gpt2, found 'llama'"),
        ({"ggml__model": None}, "expected this metadata key"),
        ({"ggml__pre": "tekken"}, "expected one of gpt-2, smollm, found 'tekken'"),
        ({"ggml__tokens": None}, "list of strings"),
        ({"ggml__tokens": [1, 2]}, "list of strings"),
        ({"ggml__tokens": ["a"] * 270}, "found one twice"),
        ({"ggml__token_type": NumberArray(np.ones(1))}, "a type for each of the 270 tokens, found 1"),
        ({"ggml__merges": ["h e", "x"]}, "two tokens that make a third one, found 'x'"),
        ({"ggml__merges": ["h x"]}, "found 'h x'"),
        ({"ggml__eos_token_id": 270}, "one of 270 tokens, found 270"),
        ({"ggml__bos_token_id": -1}, "found -1"),
        ({"ggml__bos_token_id": "1"}, "expected int, found str"),
        ({"chat_template": 5}, "expected str, found int"),
    ],
)
def test_bad_metadata(tiny_gguf, changes, message):
    with pytest.raises(FormatError, match=message) as raised:
        read_tokenizer(Edited(tiny_gguf, **changes))
    assert str(tiny_gguf) in str(raised.value)
