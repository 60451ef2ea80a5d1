"""State dicts, copies, pickles and casts of QuantLinear: the canonical tensors, never this CPU's bytes."""

import copy
import io
import pickle

import pytest
import torch

from tmac import QuantSpec
from tmac.codes import tensor_shapes
from tmac.nn import QuantLinear

from .layers import TERNARY, W4, assert_same_bits, random_codes, random_input, random_layer

SPECS = [W4, TERNARY, QuantSpec(3, 64, zero_point="integer"), QuantSpec(5, -1, zero_point="real"), QuantSpec(1, 32)]
SPECS.append(QuantSpec(2, 64, fast_aggregation=True))
SPECS.append(QuantSpec(4, 32, zero_point="offset", scale_format="two_level"))
SPECS.append(QuantSpec(6, 16, scale_format="two_level"))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("perm", [False, True])
def test_state_dict_holds_the_tensors_of_the_file_format(spec, bias, perm):
    layer = random_layer(spec, bias=bias, perm=perm)
    state = layer.state_dict(prefix="a.b.")
    expected = random_codes(spec, 40, 96, perm).to_tensors("a.b.")
    assert state.keys() - {"a.b.bias"} == expected.keys()
    for name, array in expected.items():
        assert_same_bits(state[name], torch.from_numpy(array))
    empty = QuantLinear(96, 40, bias, spec)
    assert {name: value.shape for name, value in empty.state_dict().items()} == tensor_shapes(spec, 40, 96, bias)
    wanted = {name.removeprefix("a.b."): torch.from_numpy(array).dtype for name, array in expected.items()}
    assert {name: value.dtype for name, value in empty.state_dict().items() if name in wanted} == {
        name: dtype for name, dtype in wanted.items() if name != "perm"
    }
    assert str(empty.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
    x = random_input(2, 96)
    assert_same_bits(empty(x), layer(x))


def test_a_state_dict_is_a_copy():
    layer = random_layer(bias=False)
    before = layer.dequantize()
    for tensor in layer.state_dict().values():
        tensor.zero_()
    assert torch.equal(layer.dequantize(), before)


def test_loading_into_a_model_names_what_does_not_fit():
    model = torch.nn.ModuleDict({"up": random_layer(), "down": random_layer(TERNARY)})
    state = model.state_dict()
    del state["down.trits"]
    state["up.planes"] = state["up.planes"][1:]
    state["up.bias"] = state["up.bias"][1:]
    state["down.planes"] = torch.zeros(1)
    with pytest.raises(RuntimeError) as error:
        model.load_state_dict(state)
    message = str(error.value)
    assert 'Missing key(s) in state_dict: "down.trits"' in message
    assert 'Unexpected key(s) in state_dict: "down.planes"' in message
    assert "size mismatch for up.planes" in message
    assert "[3, 40, 12]" in message
    assert "size mismatch for up.bias" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": torch.full((40, 3), torch.nan)}, "NaN or Inf in scales"),
        ({"planes": torch.zeros(4, 40, 12)}, "planes must be a uint8 array, got float32"),
        ({"perm": torch.zeros(96, dtype=torch.int32)}, "perm must hold each of 0 to 95 once"),
        ({"perm": torch.zeros(95, dtype=torch.int32)}, "perm must have shape"),
        ({"scales": torch.zeros(40, 3, dtype=torch.bfloat16)}, "scales is a torch.bfloat16 tensor on cpu"),
        ({"scales": torch.zeros(40, 3, device="meta")}, "scales is a torch.float32 tensor on meta"),
    ],
    ids=["nan", "f32 planes", "repeated", "short", "bf16", "meta"],
)
def test_values_that_do_not_fit_are_reported_with_the_module(change, message):
    model = torch.nn.ModuleDict({"up": random_layer()})
    x = random_input(1, 96)
    before = model["up"](x)
    state = model.state_dict() | {f"up.{name}": value for name, value in change.items()}
    with pytest.raises(RuntimeError, match="up cannot be packed") as error:
        model.load_state_dict(state)
    assert message in str(error.value)
    assert_same_bits(model["up"](x), before)


def test_a_partial_state_dict_changes_nothing_when_not_strict():
    layer = random_layer()
    x = random_input(1, 96)
    before = layer(x)
    result = layer.load_state_dict({"scales": torch.zeros(40, 3, dtype=torch.float16), "other": x}, strict=False)
    assert result.missing_keys == ["planes", "offsets", "bias"]
    assert_same_bits(layer(x), before)


def test_an_empty_layer_says_that_it_is_empty():
    layer = QuantLinear(96, 40, True, W4)
    assert layer.kernel == ""
    assert "kernel=''" in repr(layer)
    with pytest.raises(ValueError, match="packed"):
        layer(random_input(1, 96))
    with pytest.raises(ValueError, match="no weight"):
        layer.dequantize()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin.load_state_dict(random_layer().state_dict())
        assert_same_bits(twin(random_input(1, 96)), random_layer()(random_input(1, 96)))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_equal_and_independent(spec, how):
    layer = random_layer(spec, perm=True).eval()
    calls = []
    if how == "deepcopy":
        layer.register_forward_hook(lambda *_: calls.append(1))
    model = torch.nn.Sequential(layer, layer)
    if how == "deepcopy":
        twin = copy.deepcopy(model)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert twin[0] is twin[1]
    assert twin[0].spec == spec
    assert not twin[0].training
    assert twin[0].weight.data_ptr() != layer.weight.data_ptr()
    assert twin[0].bias is not layer.bias
    x = random_input(3, 96)
    assert_same_bits(twin[0](x), layer(x))
    assert len(calls) == (2 if how == "deepcopy" else 0)


def test_pickles_never_hold_the_packed_bytes():
    layer = random_layer(n=256, k=512)
    packed = layer.weight.numpy().tobytes()
    pickled = pickle.dumps(layer)
    assert packed[:8] not in pickled
    assert layer.state_dict()["planes"].numpy().tobytes() in pickled


@pytest.mark.parametrize(
    "cast",
    [
        lambda layer: layer.half(),
        lambda layer: layer.to(torch.bfloat16),
        lambda layer: layer.double(),
        lambda layer: layer.type(torch.float16),
        lambda layer: layer.half().float(),
        lambda layer: layer.to("cpu"),
        lambda layer: layer.share_memory(),
    ],
    ids=["half", "bfloat16", "double", "type", "half and back", "cpu", "share_memory"],
)
def test_casts_do_not_touch_the_weight_or_the_bias(cast):
    layer = random_layer()
    bias = layer.bias
    x = random_input(3, 96)
    before = layer(x)
    cast(layer)
    assert layer.weight.dtype == torch.uint8
    assert layer.bias is bias
    assert layer.bias.dtype == torch.float32
    assert_same_bits(layer(x), before)


def test_a_layer_on_meta_can_be_filled():
    source = random_layer()
    layer = QuantLinear(96, 40, True, W4).to("meta")
    layer.load_state_dict(source.state_dict())
    assert_same_bits(layer(random_input(1, 96)), source(random_input(1, 96)))
    with torch.device("meta"):
        layer = QuantLinear(96, 40, True, W4)
    layer.load_state_dict(source.state_dict(), assign=True)
    assert_same_bits(layer(random_input(1, 96)), source(random_input(1, 96)))


def test_parameters_are_the_bias_alone():
    layer = random_layer()
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert [name for name, _ in layer.named_buffers()] == ["weight"]
    assert all(not parameter.requires_grad for parameter in layer.parameters())
