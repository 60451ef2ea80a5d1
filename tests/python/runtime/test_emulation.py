"""Every layer of the native decoder in the fast mode against an emulation in torch, on the emulation's own inputs.

The emulation is a model of transformers whose low-bit layers round activations as docs/numerics.md says and sum them in
double. Both sides agree to 1e-5 of the largest number of a row. One thing must be allowed for: what is rounded differs
in its last bits, so that an activation in the middle of two steps may go up on one side and down on the other, which
moves a row by much more. No tolerance hides that. The emulation knows which values are that near to the middle
(`rounding.ERROR`), and a row that differs must come out the same with some of these, and nothing else, turned.
"""

import itertools

import numpy as np
import pytest
import torch
from emulated_models import Emulation
from native_layer import NativeLayer
from rounding import turn_until_same
from runtime_models import FAMILIES, config_of, model_of

import tmac
from tmac import _core
from tmac.hf.native_weights import read_weights
from tmac.nn import QuantLinear

RELATIVE = 1e-5  # of the largest number of a row
TEXTS, LENGTH = 2, 24  # past every sliding window of these models
PIECES = {"prompt": 15, "decode": 1}  # tokens that go through the native layer together
IDS = np.arange(TEXTS * LENGTH, dtype=np.int32).reshape(TEXTS, LENGTH)

TERNARY = tmac.QuantConfig(bits=2, group_size=-1, codebook="ternary", activation="token")
CHANGES = [(family, {}) for family in FAMILIES if family != "BitNet"] + [("GPTNeoX", {"use_parallel_residual": True})]
# Methods of the two classes, for generated tokens and for prompts.
METHODS = [("lut", "mad"), ("mad", "lut")]
VARIANTS = [
    (family, changes, tmac.QuantConfig(bits=bits), methods)
    for (family, changes), bits, methods in itertools.product(CHANGES, (4, 2), METHODS)
] + [("BitNet", {}, TERNARY, ("mad", "mad")), ("BitNet", {}, TERNARY, ("trit", "trit"))]


def named(variant):
    family, changes, config, methods = variant
    return "-".join([family, *changes, f"w{config.bits}", *methods])


def kernels_of(spec, methods):
    """The fastest kernels of these methods that share a memory order here, else the portable ones."""
    width = "ternary" if spec.codebook == "ternary" else f"w{spec.bits}"
    wanted = [f"qgemm_{method}_{width}_" for method in methods]
    pairs = [pair for pair in _core.candidate_kernels(spec) if all(map(str.startswith, pair, wanted))]
    return ",".join(pairs[0] if pairs else [f"{name}scalar" for name in wanted])


@pytest.fixture(scope="module", params=VARIANTS, ids=named)
def pair(request):
    """An emulation, and the weights of what it emulates."""
    family, changes, config, methods = request.param
    return emulation_of(model_of(config_of(family, **changes)), config, methods)


def emulation_of(model, config, methods):
    tmac.quantize_(model, config)
    for layer in model.modules():
        if isinstance(layer, QuantLinear):
            layer.repack_(kernels_of(layer.spec, methods))
            assert [kernel.split("_")[1] for kernel in (layer.kernel, layer.prompt_kernel)] == list(methods)
    weights = read_weights(model)
    return Emulation(model), weights


def calls_of(emulation):
    tokens = torch.randint(3, emulation.model.config.vocab_size, IDS.shape, generator=torch.Generator().manual_seed(0))
    return emulation.calls_of_layers(tokens)


def inputs_of(call):
    args, named = call
    return (args[0] if args else named["hidden_states"]).flatten(0, -2).numpy()


def differing(found, wanted):
    """Rows that are not the same."""
    assert np.isfinite(found).all()
    return np.flatnonzero(np.abs(found - wanted).max(1) > RELATIVE * np.abs(wanted).max(1))


@pytest.mark.parametrize("phase", ["prompt", "decode"])
def test_every_layer_rounds_as_its_emulation(pair, phase):
    emulation, weights = pair
    emulation.phase = phase
    for index, call in enumerate(calls_of(emulation)):
        layer = NativeLayer(weights, index, inputs_of(call))
        found = layer.run(IDS, phase, PIECES[phase])

        def compare(turned, index=index, call=call, layer=layer, found=found):
            with emulation.rounding.turning(turned):
                hidden = emulation.run_layer(index, call)
            return differing(found, layer.norm(hidden.numpy())), emulation.rounding.near

        turn_until_same(compare)


def test_the_emulation_tells_the_classes_apart():
    emulation, weights = emulation_of(model_of(config_of("Llama")), tmac.QuantConfig(bits=4), ("lut", "mad"))
    for emulated, native in itertools.permutations(PIECES):
        emulation.phase = emulated
        call = calls_of(emulation)[0]
        layer = NativeLayer(weights, 0, inputs_of(call))
        wanted = layer.norm(emulation.run_layer(0, call).numpy())
        assert len(differing(layer.run(IDS, native, PIECES[native]), wanted)) == IDS.size
