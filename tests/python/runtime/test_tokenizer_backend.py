"""Large vocabularies, whose parts are given to the tokenizers package: the same tokenizer, in less memory."""

import itertools
import json
import subprocess
import sys

import pytest
from small_tokenizers import EXTRA, SPECIAL, finished
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tmac.runtime import tokenizer_backend
from tmac.runtime.tokenizer_backend import make_backend

TEXT = "the old man and the sea, and the sea and the old fisherman"


@pytest.fixture
def text(monkeypatch):
    """A trained byte-level tokenizer that counts as large, with added tokens inside and behind its vocabulary."""
    monkeypatch.setattr(tokenizer_backend, "LARGE", 0)
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<bos>"], show_progress=False)
    inner.train_from_iterator([TEXT] * 3, trainer)
    return finished(inner).to_json()


def changed(text, **model):
    content = json.loads(text)
    content["model"].update(model)
    return json.dumps(content)


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"unk_token": "<bos>", "fuse_unk": True},
        {"ignore_merges": True},
        {"end_of_word_suffix": ""},
        {"dropout": 0.0},
    ],
)
def test_parts_make_what_the_whole_text_makes(text, model):
    text = changed(text, **model)
    reads = []
    ours, theirs = make_backend(lambda: reads.append(1) or text), Tokenizer.from_str(text)
    assert len(reads) == 1  # it did not fall back
    assert ours.to_str() == theirs.to_str()
    for sample in (TEXT, f"<eos>the{EXTRA[0]} sea<bos>", "né 🙂"):
        assert ours.encode(sample).ids == theirs.encode(sample).ids
    assert [ours.token_to_id(token) for token in (*SPECIAL, *EXTRA)] == [
        0,
        theirs.get_vocab_size() - 2,
        ours.get_vocab_size() - 1,
    ]


def unlike(text):
    """Tokenizers that are left to the package: by what they have."""
    content = json.loads(text)
    merges = content["model"]["merges"]
    yield changed(text, merges=[" ".join(merge) for merge in merges])
    yield json.dumps(
        {**content, "added_tokens": [{**token, "id": token["id"] + 7} for token in content["added_tokens"]]}
    )
    yield json.dumps({**content, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}})


def test_what_is_written_otherwise_is_left_to_the_package(text):
    for other in unlike(text):
        assert make_backend(lambda other=other: other).to_str() == Tokenizer.from_str(other).to_str()


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"model": {"vocab": 3}}', '{"model": 1, "added_tokens": []}'])
def test_damage_is_what_the_package_says(text, broken):
    with pytest.raises(Exception, match=r"."):
        make_backend(lambda: broken)


def test_merges_of_unknown_tokens_are_refused(text):
    with pytest.raises(Exception, match="zz"):
        make_backend(lambda: changed(text, merges=[["zz", "q"]]))


MEMORY = r"""
import re, sys
from tokenizers import Tokenizer
from tmac.runtime.tokenizer_backend import make_backend

def peak():  # of this program alone: ru_maxrss starts at the peak of the one that started it
    with open("/proc/self/status") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1])

def read():
    with open(sys.argv[2], encoding="utf-8") as file:
        return file.read()

before = peak()
found = make_backend(read) if sys.argv[1] == "parts" else Tokenizer.from_str(read())
assert found.get_vocab_size() == 65_534
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_parts_take_less_memory(tmp_path):
    """Four merges a token: a token that has several halves is made by several, two a token in Gemma's vocabulary."""
    tokens = ["".join(letters) for length in range(1, 16) for letters in itertools.product("ab", repeat=length)]
    merges = [[token[:cut], token[cut:]] for token in tokens for cut in range(1, min(len(token), 5))]
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": [], "model": model}), encoding="utf-8")

    def taken(how):
        command = [sys.executable, "-c", MEMORY, how, str(path)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    parts, whole = taken("parts"), taken("whole")
    assert 0 < parts < 0.8 * whole
