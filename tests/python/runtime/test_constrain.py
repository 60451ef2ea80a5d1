import json
import re
import sys

import pytest

OPTIONS = {"temperature": 10.0, "max_new_tokens": 200}  # the fake is very sure of itself
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Hello", "日本", "é"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 500},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "count", "flags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.fixture
def engine(make_engine):
    pytest.importorskip("llguidance", reason="needs the extra tmac-cpu[constrained]")
    return make_engine()


@pytest.mark.parametrize("as_text", [False, True])
def test_json_fits_its_schema(engine, as_text):
    schema = json.dumps(SCHEMA) if as_text else SCHEMA
    found = set()
    for seed in range(12):
        result = engine.generate("x", json_schema=schema, seed=seed, **OPTIONS)
        value = json.loads(result.text)
        assert result.finish_reason == "stop"
        assert value.keys() == {"name", "count", "flags"}
        assert value["name"] in SCHEMA["properties"]["name"]["enum"]
        assert value["count"] in range(501)
        assert all(isinstance(flag, bool) for flag in value["flags"])
        found.add(result.text)
    assert len(found) > 6


def test_regular_expressions(engine):
    for seed in range(8):
        result = engine.generate("x", regex=r"(ab|é){2,5}\n[0-9]{3}", seed=seed, **OPTIONS)
        assert re.fullmatch(r"(ab|é){2,5}\n[0-9]{3}", result.text)
        assert result.finish_reason == "stop"


@pytest.mark.parametrize("grammar", ['start: "Hello" NAME\nNAME: /[a-c]{3}/', 'root ::= "Hello" [a-c] [a-c] [a-c]'])
def test_grammars_of_lark_and_gbnf(engine, grammar):
    result = engine.generate("x", grammar=grammar, **OPTIONS)
    assert re.fullmatch("Hello[a-c]{3}", result.text)


def test_the_constraint_of_a_batch_is_each_text_s_own(engine):
    prompts = [[number] for number in range(6)]
    alone = [engine.generate(prompt, regex="[ab]{4,9}!", **OPTIONS).text for prompt in prompts]
    together = [result.text for result in engine.generate(prompts, regex="[ab]{4,9}!", **OPTIONS)]
    streamed = [""] * 6
    for chunk in engine.generate(prompts, regex="[ab]{4,9}!", stream=True, **OPTIONS):
        streamed[chunk.index] += chunk.text
    assert alone == together == streamed
    assert len(set(alone)) > 1


def test_ids_without_a_token_are_never_allowed(engine):
    for seed in range(4):
        result = engine.generate("x", regex="(.|\n){40}", seed=seed, temperature=100.0, max_new_tokens=100)
        assert max(result.token_ids) < engine.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"json_schema": {"type": "nonsense"}}, ValueError, "json_schema: Invalid type: nonsense"),
        ({"json_schema": "{"}, ValueError, "json_schema: expected a schema or its JSON"),
        ({"json_schema": {"type": {1, 2}}}, ValueError, "json_schema: .*not JSON serializable"),
        ({"json_schema": [1]}, TypeError, "json_schema: expected a dictionary, found list"),
        ({"json_schema": '"x", "lark_grammar": "y"'}, ValueError, "json_schema"),
        ({"regex": "(["}, ValueError, "regex: .*unclosed character class"),
        ({"grammar": "start: other"}, ValueError, "grammar: .*unknown name"),
        ({"grammar": "root ::= ("}, ValueError, "grammar: "),
        ({"grammar": "{ nonsense"}, ValueError, "grammar: "),
    ],
)
def test_a_wrong_constraint_is_named(engine, options, error, message):
    with pytest.raises(error, match=message):
        engine.generate("x", **options)
    assert not engine.decoder.passes


def test_a_constraint_needs_a_token_that_ends_the_text(engine, make_engine):
    with pytest.raises(ValueError, match="a model with an end-of-text token"):
        make_engine(eos=False).generate("x", regex="a")


def test_the_missing_package_is_named(make_engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r"need llguidance: pip install 'tmac-cpu\[constrained\]'"):
        make_engine().generate("x", regex="a")
