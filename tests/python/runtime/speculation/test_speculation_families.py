"""Trees over models of every kind: sliding windows, experts, rotary frequencies that depend on the length."""

import pytest
from drafts_for_tests import EagerController, TreeDraft, random_guesses
from runtime_models import config_of, model_of, save_low

import tmac
from tmac.runtime.native import core
from tmac.runtime.speculation.combined import CombinedDraft
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.speculator import make_speculator

LONG_ROPE = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
MODELS = {
    "windows": ("Gemma3Text", {}),
    "one window": ("Mistral", {}),
    "experts": ("Qwen3Moe", {}),
    "parallel residual": ("GPTNeoX", {"use_parallel_residual": True}),
    "dynamic rope": (
        "Llama",
        {"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "long rope": (
        "Phi3",
        {
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, **LONG_ROPE},
        },
    ),
}
PLANES = [(8, 4), (4, 3), (8, 4), (4, 3), (3, 2), (8, 4)]  # bits of each model, and how many of them draft
PROMPTS = ([5, 6, 7, 8] * 8, list(range(3, 60)), [9])
OPTIONS = {"temperature": 0.7, "ignore_eos": True, "max_new_tokens": 40, "logprobs": 0}


@pytest.fixture(scope="module", params=MODELS)
def engine(request, tmp_path_factory):
    family, changes = MODELS[request.param]
    folder = tmp_path_factory.mktemp("model")
    model_of(config_of(family, **changes)).save_pretrained(folder)
    with tmac.Engine.from_pretrained(folder, num_threads=1) as made:
        made.folder = folder
        yield made


@pytest.fixture(scope="module", params=[*zip(MODELS, PLANES, strict=True)], ids=lambda one: f"{one[0]}, {one[1]}")
def quantized(request, tmp_path_factory):
    """A folder and a number of planes."""
    name, (bits, planes) = request.param
    family, changes = MODELS[name]
    return save_low(tmp_path_factory.mktemp("model"), family, bits, **changes), planes


def attach(engine, draft, seed):
    engine._passes._speculator = make_speculator(
        engine._passes.decoder, draft, EagerController(seed), engine.vocab_size, 1
    )


@pytest.mark.parametrize("kind", ["random", "model"])
def test_the_text_is_the_plain_one(engine, kind):
    accepted = 0
    for seed, prompt in enumerate(PROMPTS):
        expected = engine.generate(prompt, speculative=False, **OPTIONS)
        if kind == "random":
            draft = TreeDraft(random_guesses([prompt + expected.token_ids], engine.vocab_size, seed))
        else:
            parts = tmac.runtime.loading.load_engine_parts(engine.folder)
            draft = CombinedDraft(
                NgramDraft(), ModelDraft(core.Decoder(parts.model), "model:x", context_length=96, num_threads=1)
            )
        attach(engine, draft, seed)
        result = engine.generate(prompt, **OPTIONS)
        assert result.speculation.error is None
        assert result.token_ids == expected.token_ids
        assert result.logprobs == expected.logprobs
        accepted += sum(result.speculation.accepted)
    assert accepted > 5


@pytest.mark.parametrize("ngram", ["", "ngram+"])
def test_the_text_with_planes_is_the_plain_one(quantized, ngram):
    """Windows and rotary frequencies see the draft's rows in the target's own cache."""
    folder, planes = quantized
    with tmac.Engine.from_pretrained(folder, num_threads=1) as engine:
        expected = [engine.generate(prompt, **OPTIONS) for prompt in PROMPTS]
    accepted = 0
    with tmac.Engine.from_pretrained(folder, num_threads=1, draft=f"{ngram}planes:{planes}") as engine:
        engine._passes._speculator.controller = EagerController(planes)
        for prompt, text in zip(PROMPTS, expected, strict=True):
            result = engine.generate(prompt, **OPTIONS)
            assert result.speculation.error is None
            assert result.token_ids == text.token_ids
            assert result.logprobs == text.logprobs
            accepted += sum(result.speculation.accepted)
    assert accepted > 5
