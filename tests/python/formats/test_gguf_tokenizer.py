import json

import numpy as np
import pytest

from tmac.formats import FormatError, open_checkpoint
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


def simple_text(content):
    model = content["model"]
    return json.dumps({**content, "model": {**model, "merges": list(model["merges"])}}, ensure_ascii=False)


def test_the_text_is_that_of_the_json_package(tiny_gguf):
    tokenizer = read_tokenizer(GgufFile(tiny_gguf))
    assert tokenizer.text() == simple_text(tokenizer.json)
    assert open_checkpoint(tiny_gguf).texts["tokenizer.json"]() == tokenizer.text()


@pytest.mark.parametrize("piece", [1, 2, 1 << 14])
def test_the_text_of_a_sentencepiece_vocabulary(tiny_gguf, monkeypatch, piece):
    """With characters that JSON escapes, and the best tokens neither first nor last."""
    monkeypatch.setattr("tmac.formats.gguf_merges.PIECE", piece)
    tokens = ['"', "\\", '"\\', "\n", "\x00", "\n\x00", "\u2028", "\U0001f600", "\u2028\U0001f600", "\x7f", '"\\\n']
    tokenizer = read_tokenizer(spm(tiny_gguf, tokens, [0, 0, 5, 0, 0, 9, 0, 0, 7, 0, 1]))
    merges = tokenizer.json["model"]["merges"]
    assert list(merges) == merges[:] == [["\n", "\x00"], ["\u2028", "\U0001f600"], ['"', "\\"], ['"\\', "\n"]]
    assert tokenizer.text() == simple_text(tokenizer.json)


def test_optional_keys(tiny_gguf):
    file = Edited(tiny_gguf, chat_template=None, ggml__padding_token_id=None, ggml__add_bos_token=True)
    tokenizer = read_tokenizer(file)
    assert tokenizer.chat_template is None
    assert "pad_token" not in tokenizer.special
    assert tokenizer.json["post_processor"]["special_tokens"]["<|im_start|>"]["ids"] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "bert"}, "expected the tokenizer gpt2 .* found 'bert'"),
        ({"ggml__model": None}, "expected this metadata key"),
        ({"ggml__pre": "tekken"}, "expected one of .*, smollm, found 'tekken'"),
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


def spm(tiny_gguf, tokens, scores=None, types=None, **changes):
    scores = np.arange(0, -len(tokens), -1) if scores is None else scores
    return Edited(
        tiny_gguf,
        ggml__model="llama",
        ggml__tokens=tokens,
        ggml__merges=None,
        ggml__scores=NumberArray(np.asarray(scores, np.float32)),
        ggml__token_type=NumberArray(np.asarray(types or [1] * len(tokens), np.int32)),
        ggml__bos_token_id=0,
        ggml__eos_token_id=0,
        ggml__unknown_token_id=None,
        ggml__padding_token_id=None,
        **{"ggml__add_bos_token": None, **changes},
    )


def test_merges_follow_the_scores(tiny_gguf):
    tokens = ["a", "b", "ab", "ba", "aba", "\u2581a"]
    content = read_tokenizer(spm(tiny_gguf, tokens, [0, 0, -3, -1, -2, -5])).json
    assert list(content["model"]["merges"]) == [["b", "a"], ["ab", "a"], ["a", "ba"], ["a", "b"]]
    assert content["pre_tokenizer"]["prepend_scheme"] == "first"
    assert content["post_processor"]["single"][0]["SpecialToken"]["id"] == "a"
    without = read_tokenizer(spm(tiny_gguf, tokens, ggml__add_space_prefix=False, ggml__add_bos_token=False)).json
    assert without["pre_tokenizer"]["prepend_scheme"] == "never"
    assert without["post_processor"]["special_tokens"] == {}


@pytest.mark.parametrize(
    ("tokens", "scores", "message"),
    [
        (["a" * 513], None, "at most 512 characters, found one of 513"),
        (["a", "b"], [0.0], "a number for each of the 2 tokens"),
        (["a", "b"], [0.0, np.nan], "a number for each of the 2 tokens"),
        (["a" * count for count in range(1, 300)], None, "too many ways"),
    ],
)
def test_bad_vocabulary(tiny_gguf, tokens, scores, message):
    with pytest.raises(FormatError, match=f"tokenizer.ggml.*{message}"):
        read_tokenizer(spm(tiny_gguf, tokens, scores))


def test_more_tokens_than_any_model_has(tiny_gguf, monkeypatch):
    monkeypatch.setattr("tmac.formats.gguf_tokenizer.MAX_TOKENS", 269)
    with pytest.raises(FormatError, match=r"tokenizer\.ggml\.tokens: expected at most 269 tokens, found 270"):
        read_tokenizer(GgufFile(tiny_gguf))


def test_equal_scores_take_the_longest_left_part_and_then_the_order_of_the_tokens(tiny_gguf):
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    content = json.loads(read_tokenizer(spm(tiny_gguf, tokens, [0, 0, 0, -1, -1, -1])).text())
    assert content["model"]["merges"] == [["ab", "c"], ["a", "bc"], ["a", "b"], ["b", "c"]]
    assert json.loads(read_tokenizer(spm(tiny_gguf, ["a", "b"], [0, 0])).text())["model"]["merges"] == []
