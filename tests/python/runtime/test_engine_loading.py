"""How an engine is made of what loading gives, with a loader in place of the real one."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from fakes import ChatTemplate, FakeDecoder

import tmac
from tmac.runtime.native import core


@pytest.fixture
def calls(monkeypatch, fake_core, tokenizer):
    """What loading and the decoder were called with."""
    found = {}

    def load_engine_parts(path, context_length, **options):
        found["load"] = (path, options)
        return SimpleNamespace(
            model="model",
            model_config={"vocab_size": tokenizer.vocab_size, "windows": [0], "rope": []},
            config={"model_type": "llama"},
            tokenizer=tokenizer,
            eos_ids=frozenset({tokenizer.id("<eos>")}),
            chat_template=ChatTemplate(),
            context_length=context_length or 512,
        )

    def make_decoder(model, cache_type, max_positions):
        found["decoder"] = (model, cache_type, max_positions)
        return FakeDecoder(tokenizer.vocab_size, max_positions=max_positions)

    monkeypatch.setattr("tmac.runtime.opening.load_engine_parts", load_engine_parts)
    monkeypatch.setattr(core, "Decoder", make_decoder, raising=False)
    return found


def test_the_parts_make_an_engine(calls, tokenizer):
    with tmac.Engine.from_pretrained("folder", head_bits=8, requantize=("IQ4_XS",), max_positions=300) as engine:
        assert engine.generate("Hello", max_new_tokens=3, ignore_eos=True).finish_reason == "length"
        assert engine.chat([{"role": "user", "content": "Hello"}], max_new_tokens=1).prompt_tokens > 3
        assert (engine.tokenizer, engine.config) == (tokenizer, {"model_type": "llama"})
        assert (engine.vocab_size, engine.context_length) == (tokenizer.vocab_size, 512)
        assert engine.eos_ids == {tokenizer.id("<eos>")}
    path, options = calls["load"]
    assert path == "folder"
    assert {name: value for name, value in options.items() if value} == {"head_bits": 8, "requantize": ("IQ4_XS",)}
    assert calls["decoder"] == ("model", "f16", 300)


@pytest.mark.parametrize(
    ("options", "cache_type"),
    [({}, "f16"), ({"activation": "float"}, "f32"), ({"activation": "float", "cache_type": "int8"}, "int8")],
)
def test_the_exact_mode_has_an_exact_cache(calls, options, cache_type):
    tmac.Engine.from_pretrained("folder", **options).close()
    assert calls["decoder"] == ("model", cache_type, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 0}, "context_length"),
        ({"activation": "int8"}, "activation: expected one of group, token, float, found 'int8'"),
        ({"cache_type": "f8"}, "cache_type: expected one of f32, f16, int8, found 'f8'"),
        ({"head_bits": 9}, "head_bits: expected an integer from 1 to 8, found 9"),
        ({"embedding_bits": 0}, "embedding_bits: expected an integer from 1 to 8, found 0"),
        ({"max_queue": -1}, "max_queue"),
        ({"kept_positions": -1}, "kept_positions"),
        ({"max_positions": 0}, "max_positions: expected an integer at least 1, found 0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"num_threads": 0}, "num_threads"),
        ({"max_batch": 0}, "max_batch"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_read(calls, options, message):
    with pytest.raises(ValueError, match=message):
        tmac.Engine.from_pretrained("folder", **options)
    assert not calls


def test_a_context_beyond_the_model_s_is_refused_before_the_weights_are_read(repository, monkeypatch):
    monkeypatch.setattr("tmac.runtime.loading.load_weights", lambda *_, **__: pytest.fail("weights are read"))
    with pytest.raises(ValueError, match=r"context_length: expected an integer from 1 to \d+, found 1000000"):
        tmac.Engine.from_pretrained(repository / "tests" / "data" / "tiny_llama.gguf", context_length=10**6)


def test_a_smaller_context_may_be_asked_for(calls):
    with tmac.Engine.from_pretrained("folder", context_length=100) as engine:
        assert engine.context_length == 100


def test_the_engine_s_modules_need_neither_torch_nor_the_extras():
    code = (
        "import sys\nsys.modules |= dict.fromkeys(('torch', 'transformers', 'tokenizers', 'jinja2', 'llguidance'))\n"
        "import tmac\nprint(tmac.Engine.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert result.stdout.strip() == "Engine"


def test_the_missing_extra_is_named(monkeypatch):
    class Missing:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name == "tmac.runtime.loading":
                raise ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")

    for name in ("opening", "loading"):
        monkeypatch.delitem(sys.modules, f"tmac.runtime.{name}", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing, *sys.meta_path])
    with pytest.raises(ImportError, match=r"tmac.Engine needs tokenizers: pip install 'tmac-cpu\[engine\]'"):
        tmac.Engine.from_pretrained("folder")
