"""Every layer of a quantized llama against docs/numerics.md in torch, on the inputs that the model gave it."""

import pytest
import torch
from torch.nn.functional import pad

import tmac
from tmac import Codes, QuantConfig
from tmac.nn import QuantLinear


def act_groups(columns, group_size):
    for begin in range(0, columns, group_size):
        end = min(columns, begin + group_size)
        yield from ((begin // group_size, at, min(end, at + 128)) for at in range(begin, end, 128))


def lut_sums(a, codes, bits):
    """One act group f32 `[m, k]` -> (isum `[m, n]`, act_scale `[m, 1]`, act_sum `[m, 1]`, centre), f64."""
    total = a.double().sum(1, keepdim=True)
    a, codes = pad(a, (0, -a.shape[1] % 4)), pad(codes, (0, -a.shape[1] % 4))
    quads = a.reshape(len(a), 1, -1, 4)
    size = quads.abs()
    largest = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).amax(-1)
    isum = torch.zeros(len(a), len(codes), dtype=torch.float64)
    for plane in range(bits):
        signed = ((codes >> plane & 1) * 2.0 - 1).float().reshape(1, len(codes), -1, 4) * quads
        sums = (signed[..., 0] + signed[..., 1]) + (signed[..., 2] + signed[..., 3])
        isum += (sums * (127 / largest)[..., None]).round().double().sum(-1) * 2**plane
    return isum, largest.double() / 127 / 2, total, (2**bits - 1) / 2


def lut_fast_sums(a, codes, bits):
    """The same, aggregated by averages: trees of 2, 4 or 8 leaves in four lanes, two of which hold complements."""
    _, act_scale, total, centre = lut_sums(a, codes, bits)
    leaves = 2 if a.shape[1] <= 32 else 4 if a.shape[1] <= 64 else 8
    missing = 16 * leaves - a.shape[1]
    quads, codes = pad(a, (0, missing)).reshape(len(a), 1, -1, 4), pad(codes, (0, missing))
    size = quads.abs()
    largest = ((size[..., 0] + size[..., 1]) + (size[..., 2] + size[..., 3])).amax(-1)
    isum = torch.zeros(len(a), len(codes), dtype=torch.float64)
    for plane in range(bits):
        signed = ((codes >> plane & 1) * 2.0 - 1).float().reshape(1, len(codes), -1, 4) * quads
        sums = (signed[..., 0] + signed[..., 1]) + (signed[..., 2] + signed[..., 3])
        entries = (sums * (127 / largest)[..., None]).round().int().unflatten(-1, (leaves, 4))
        nodes = torch.cat([entries[..., :2] + 128, 127 - entries[..., 2:]], -1)
        while nodes.shape[-2] > 1:
            nodes = (nodes[..., 0::2, :] + nodes[..., 1::2, :] + 1) >> 1
        a0, a1, a2, a3 = nodes[..., 0, :].double().unbind(-1)
        isum += leaves * (a0 + a1 - a2 - a3 - 2) * 2**plane
    return isum, act_scale, total, centre


def mad_sums(a, codes, bits):
    largest = a.abs().amax(1, keepdim=True)
    q, step, centre = (a * (127 / largest)).round().double(), largest.double() / 127, 2 ** (bits - 1)
    return q @ (codes.double() - centre).T, step, step * q.sum(1, keepdim=True), centre


def emulated(x, codes, kernel):
    """f32 `[m, k]` and Codes with offsets -> f64 `[m, n]`: activations are rounded as in the kernels, sums are not."""
    spec, values = codes.spec, torch.from_numpy(codes.codes).int()
    scales, offsets = torch.from_numpy(codes.scales).double(), torch.from_numpy(codes.zeros).double()
    y = torch.zeros(len(x), codes.out_features, dtype=torch.float64)
    for group, begin, end in act_groups(codes.in_features, spec.group_size):
        method = lut_fast_sums if "_lut_fast_" in kernel else lut_sums if "_lut_" in kernel else mad_sums
        isum, act_scale, act_sum, centre = method(x[:, begin:end], values[:, begin:end], spec.bits)
        scale = scales[:, group]
        y += isum * act_scale * scale + act_sum * (scale * centre + offsets[:, group])
    return y


@pytest.mark.parametrize("tokens", [9, 20])  # the decoding class, and the one for prompts
@pytest.mark.parametrize("group_size", [32, 160])
@pytest.mark.parametrize("fast_aggregation", [False, True])
def test_every_layer_rounds_as_the_document_says(fast_aggregation, group_size, tokens):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=70,
        hidden_size=72,
        intermediate_size=196,  # of the group of 160: act groups of 128, 32 and 36 columns
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    tmac.quantize_(model, QuantConfig(bits=4, group_size=group_size, head_bits=8, fast_aggregation=fast_aggregation))
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            layer.register_forward_hook(lambda layer, x, y, name=name: seen.update({name: (layer, x[0][0], y[0])}))
    with torch.no_grad():
        model(torch.randint(0, 70, (1, tokens)))
    assert len(seen) == 2 * 7 + 1
    assert seen["lm_head"][0].spec.bits == 8
    for name, (layer, x, y) in seen.items():
        assert ("_lut_fast_" in layer.kernel) == (fast_aggregation and name != "lm_head")
        want = emulated(
            x, Codes.from_buffer(layer.weight.numpy()), layer.kernel if tokens <= 16 else layer.prompt_kernel
        )
        assert (y.double() - want).norm() <= 1e-5 * want.norm(), name
        dense = x.double() @ layer.dequantize().double().T
        assert (y.double() - dense).norm() > 1e-5 * dense.norm(), name  # the fast mode, not the exact one
