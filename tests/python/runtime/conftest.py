"""An engine over the fake decoder."""

import fakes
import pytest
from fakes import ChatTemplate, FakeDecoder
from small_tokenizers import byte_level

from tmac.runtime.engine import Engine
from tmac.runtime.native import core

PADDING = 5  # logits of ids that the tokenizer has not


@pytest.fixture(scope="session")
def tokenizer():
    return byte_level()


@pytest.fixture
def fake_core(monkeypatch):
    """The fakes in place of what the compiled core has."""
    monkeypatch.setattr(core, "Sampler", fakes.FakeSampler, raising=False)
    monkeypatch.setattr(core, "log_probabilities", fakes.log_probabilities, raising=False)
    monkeypatch.setattr(core, "top_log_probabilities", fakes.top_log_probabilities, raising=False)


@pytest.fixture
def make_engine(fake_core, tokenizer):
    """`make_engine(decoder options, engine=...)`: engines that are closed at the end; `.decoder` is the fake."""
    engines = []

    def make(*, tokenizer=tokenizer, context_length=256, chunk_size=32, eos=True, engine=None, model=None, **options):
        vocab = tokenizer.vocab_size + PADDING
        decoder = FakeDecoder(vocab, **options)
        made = Engine(
            decoder,
            tokenizer,
            model_config={"vocab_size": vocab, "windows": [0, options.get("window", 0)], **(model or {})},
            config={"model_type": "fake"},
            eos_ids=[tokenizer.id("<eos>")] if eos else [],
            context_length=context_length,
            chat_template=ChatTemplate(),
            chunk_size=chunk_size,
            **(engine or {}),
        )
        made.decoder = decoder
        engines.append(made)
        return made

    yield make
    for engine in engines:
        engine.close()
        assert not engine.decoder.sequences
