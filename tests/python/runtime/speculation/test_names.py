"""What `draft=` may be."""

import json
from types import SimpleNamespace

import pytest

from tmac.runtime.speculation.names import DraftName, parse_draft
from tmac.runtime.speculation.opening import make_planes
from tmac.runtime.speculation.vocabulary import check_vocabulary


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, DraftName()),
        ("none", DraftName()),
        ("auto", DraftName(auto=True)),
        ("ngram", DraftName(ngram=True)),
        ("planes:4", DraftName(planes=4)),
        ("model:/a/b+c", DraftName(model="/a/b+c")),
        ("ngram+planes:3", DraftName(ngram=True, planes=3)),
        ("ngram+model:x:y", DraftName(ngram=True, model="x:y")),
    ],
)
def test_names(text, expected):
    assert parse_draft(text) == expected


@pytest.mark.parametrize(
    "text", ["", "n-gram", "planes", "planes:", "planes:0", "planes:8", "planes:x", "model:", "ngram+", "ngram+ngram"]
)
def test_a_wrong_name_says_what_is_expected(text):
    with pytest.raises(ValueError, match="draft: expected"):
        parse_draft(text)


def test_only_strings():
    with pytest.raises(TypeError, match="draft: expected"):
        parse_draft(4)


class Model:
    """One that has four planes, or none."""

    def __init__(self, planes):
        self.planes, self.made = planes, None

    def make_draft(self, planes):
        if planes not in self.planes:
            raise ValueError(f"no {planes} planes")
        self.made = planes


def test_auto_takes_the_planes_that_there_are():
    for planes, expected in (([4, 3], 4), ([3], 3), ([], 0)):
        model = Model(planes)
        assert make_planes(model, DraftName(auto=True)) == DraftName(ngram=True, planes=expected, auto=True)
        assert (model.made or 0) == expected
    with pytest.raises(ValueError, match="no 5 planes"):
        make_planes(Model([4]), DraftName(planes=5))
    with pytest.raises(ValueError, match="planes:4 needs"):
        make_planes(object(), DraftName(planes=4))


def parts(vocabulary, added=()):
    if isinstance(vocabulary, list):
        model = {"vocab": [[token, -1.0] for token in vocabulary]}
    else:
        model = {"vocab": vocabulary}
    content = {"model": model, "added_tokens": [{"id": index, "content": token} for index, token in added]}
    return SimpleNamespace(tokenizer=SimpleNamespace(to_json=lambda: json.dumps(content)))


def test_the_same_tokens():
    check_vocabulary(parts({"a": 0, "b": 1}, [(2, "<e>")]), parts({"b": 1, "a": 0, "<e>": 2}), "draft")
    check_vocabulary(parts(["a", "b"]), parts({"a": 0, "b": 1}), "draft")


def test_the_first_difference_is_named():
    target = parts({"a": 0, "b": 1, "c": 2})
    with pytest.raises(ValueError, match=r"model:x.*token 1 is 'b' there and 'x' in the draft"):
        check_vocabulary(target, parts({"a": 0, "x": 1, "y": 2}), "model:x")
    with pytest.raises(ValueError, match="token 2 is 'c' there and missing in the draft"):
        check_vocabulary(target, parts({"a": 0, "b": 1}), "draft")


def test_a_model_without_a_tokenizer_cannot_be_compared():
    def refuse():
        raise ValueError("there is no tokenizer.json in x")

    without = SimpleNamespace(tokenizer=SimpleNamespace(to_json=refuse))
    with pytest.raises(ValueError, match=r"expected the draft to have a tokenizer \(there is no tokenizer"):
        check_vocabulary(parts(["a"]), without, "draft")
