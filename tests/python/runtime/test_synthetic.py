import itertools

import numpy as np
import pytest
from fake_core import use_fakes

from tmac import QuantSpec, _core
from tmac.runtime.families import describe
from tmac.runtime.synthetic import SHAPES, packed, shape_description, synthetic_model

TINY = {
    "model_type": "llama",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
W4, W8 = QuantSpec(4, 32), QuantSpec(8, 32)


@pytest.fixture
def _fakes(monkeypatch):
    use_fakes(monkeypatch)


# Parameters of the real models' matrices and embeddings, from their cards: billions, and whether the head is the
# embedding.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-2-7b", 6738415616),
        ("llama-3-8b", 8030261248),
        ("bitnet-2b-4t", 2412820480),
        ("smollm2-135m", 134515008),
        ("qwen2.5-1.5b", 1543714304 - 28 * 2048),  # without biases
        ("qwen3-0.6b", 596049920),
    ],
)
def test_a_shape_has_the_parameters_of_its_model(name, parameters):
    description = shape_description(name)
    weights = [weight for weight in description.weights if not (weight.name == "head" and description.tied)]
    assert sum(int(np.prod(weight.shape)) for weight in weights) == parameters


def test_there_is_a_test_of_every_shape():
    tested = test_a_shape_has_the_parameters_of_its_model.pytestmark[0].args[1]
    assert {name for name, _ in tested} == set(SHAPES)


def test_an_unknown_shape_names_all():
    with pytest.raises(ValueError, match=r"'llama-9' *; known are llama-2-7b, .*qwen3-0\.6b"):
        shape_description("llama-9")


@pytest.mark.usefixtures("_fakes")
def test_every_weight_is_packed_with_its_spec_and_has_bytes_of_its_own():
    description = describe(TINY)
    model = synthetic_model(description, W4, W8)
    matrices = [weight for weight in description.weights if len(weight.shape) == 2 and weight.name != "head"]
    assert set(model.packed) == {weight.name for weight in matrices}
    assert set(model.floats) == {weight.name for weight in description.weights if len(weight.shape) == 1}
    for weight in matrices:
        found = _core.describe(model.packed[weight.name])
        assert (found["out_features"], found["in_features"]) == weight.shape
        assert QuantSpec(**found["spec"]) == (W8 if weight.name == "embedding" else W4)
    addresses = sorted((buffer.ctypes.data, buffer.nbytes) for buffer in model.packed.values())
    for (first, nbytes), (second, _) in itertools.pairwise(addresses):
        assert first + nbytes <= second


@pytest.mark.usefixtures("_fakes")
def test_an_untied_model_has_a_head_and_a_mixture_float_routers():
    model = synthetic_model(describe({**TINY, "tie_word_embeddings": False}), W4, W8)
    assert QuantSpec(**_core.describe(model.packed["head"])["spec"]) == W8
    mixture = {**TINY, "model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}
    model = synthetic_model(describe(mixture), W4, W8)
    assert model.floats["layers.0.router"].shape == (3, 64)
    assert "layers.1.experts.2.down" in model.packed


@pytest.mark.usefixtures("_fakes")
def test_biases_of_norms_are_zero_and_their_weights_one():
    config = {**TINY, "model_type": "gpt_neox", "num_key_value_heads": None, "tie_word_embeddings": False}
    model = synthetic_model(describe(config), W4, W8)
    assert (model.floats["final_norm"] == 1).all()
    assert (model.floats["final_norm.bias"] == 0).all()


@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(4, 128),
        QuantSpec(2, 64, zero_point="offset"),
        QuantSpec(3, 32, zero_point="integer"),
        QuantSpec(2, 128, "ternary"),
        QuantSpec(2, -1, "ternary", activation="token"),
        QuantSpec(8, 32),
        QuantSpec(1, 100, zero_point="real"),
    ],
    ids=str,
)
def test_products_are_about_as_large_as_inputs(spec):
    """Each weight has the standard deviation 1 / sqrt(k), give or take the jitter of the scales and the sampling."""
    n, k = 150, 300
    weight = _core.dequantize(packed(np.random.default_rng(0), spec, n, k))
    assert weight.shape == (n, k)
    assert weight.std() * k**0.5 == pytest.approx(1, abs=0.25)
    assert not np.array_equal(weight[:64], weight[64:128])  # the scales differ where the codes come again


MIXTURE = {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}


@pytest.mark.parametrize("more", [{}, {"model_type": "bitnet"}, {"model_type": "qwen3", "head_dim": 16}, MIXTURE])
def test_the_core_takes_every_weight_and_the_logits_are_numbers(more):
    description = describe({**TINY, **more})
    model = synthetic_model(description, W4, W8)
    decoder = _core.Decoder(model)
    tokens, wanted = np.arange(5, dtype=np.int32), np.array([4], np.int32)
    logits = decoder.forward([decoder.create()], [tokens], "prompt", [wanted])
    assert logits.shape == (1, 200)
    assert np.isfinite(logits).all()
    assert 0.01 < logits.std() < 100
