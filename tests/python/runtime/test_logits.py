"""Logits of the native decoder against transformers, over the same low-bit weights, for every family."""

import numpy as np
import pytest
import torch
from runtime_models import FAMILIES, config_of, model_of

import tmac

RELATIVE = 1e-4  # of the largest logit: both sides are float32, in another order
START = 4  # tokens of the prompt
LENGTH = 60  # past every sliding window of these models
VARIANTS = [(family, {}) for family in FAMILIES] + [
    ("GPTNeoX", {"use_parallel_residual": True}),
    ("Llama", {"tie_word_embeddings": True}),
    ("Qwen2", {"use_sliding_window": False}),
    ("Gemma2", {"final_logit_softcapping": None, "attn_logit_softcapping": None}),
    ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("Llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
               "max_position_embeddings": 32}),
    ("Llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0,
                                   "original_max_position_embeddings": 64}}),
    ("Llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0, "rope_theta": 500000.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
]  # fmt: skip


def named(variant):
    family, changes = variant
    return "-".join([family, *(str(value) if not isinstance(value, dict) else value["rope_type"]
                               for value in changes.values())])  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS, ids=named)
def pair(request, tmp_path_factory):
    """A model of transformers with low-bit layers that round no activation, and an engine over what it saved."""
    family, changes = request.param
    model = model_of(config_of(family, **changes))
    tmac.quantize_(model, tmac.QuantConfig(bits=4, group_size=32, activation="float"))
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    with tmac.Engine.from_pretrained(folder, cache_type="f32", chunk_size=16) as engine:
        yield model, engine


def tokens_of(model, count=LENGTH, seed=0):
    return torch.randint(3, model.config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def logits_of(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float().numpy()


def assert_close(found, wanted):
    assert np.isfinite(found).all()
    assert np.abs(found - wanted).max() <= RELATIVE * np.abs(wanted).max()


def test_a_prompt_has_the_logits_of_transformers(pair):
    model, engine = pair
    tokens = tokens_of(model)
    assert_close(engine.logits(tokens), logits_of(model, tokens))


def test_step_by_step_the_logits_are_those_of_transformers(pair):
    model, engine = pair
    texts = [tokens_of(model), tokens_of(model, seed=1)]
    with engine.exclusive() as decoder:
        steps = decode(decoder, texts)
    for text, found in zip(texts, steps, strict=True):
        wanted = steps_of(model, text) if is_dynamic(model) else logits_of(model, text)[START:]
        assert_close(found, wanted)


def decode(decoder, texts):
    """Logits of texts that go on together, a token of each at a time: `[texts, tokens, vocab]`."""
    one, none = np.zeros(1, np.int32), np.zeros(0, np.int32)
    arrays = [np.array(text, np.int32) for text in texts]
    sequences = [decoder.create() for _ in texts]
    try:
        decoder.forward(sequences, [ids[:START] for ids in arrays], "prompt", [none] * len(texts))
        steps = [
            decoder.forward(sequences, [ids[at : at + 1] for ids in arrays], "decode", [one] * len(texts))
            for at in range(START, LENGTH)
        ]
    finally:
        for sequence in sequences:
            decoder.release(sequence)
    return np.stack(steps, axis=1)


def is_dynamic(model):
    """Whether what was cached depends on how long the text was then."""
    return (model.config.rope_parameters or {}).get("rope_type") == "dynamic"


def steps_of(model, ids):
    with torch.no_grad():
        state = model(torch.tensor([ids[:START]]), use_cache=True)
        rows = []
        for token in ids[START:]:
            state = model(torch.tensor([[token]]), past_key_values=state.past_key_values, use_cache=True)
            rows.append(state.logits[0, -1].float().numpy())
    return np.stack(rows)
