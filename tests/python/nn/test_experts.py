"""QuantExperts against the dense mixture with dequantized weights."""

import copy
import pickle

import pytest
import torch
from torch.nn.functional import linear, silu

from tmac import QuantSpec
from tmac.nn import QuantExpert, QuantExperts, QuantLinear

from .layers import EXACT, W4, assert_same_bits, random_layer

EXPERTS, HIDDEN, WIDTH, K = 5, 64, 96, 2


def mixture(spec=EXACT):
    generator = torch.Generator().manual_seed(0)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator)
    down = torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator)
    return QuantExperts.from_fused(gate_up, down, spec, torch.nn.SiLU())


def batch(tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    index = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:K] for _ in range(tokens)])
    return x, index, torch.rand(tokens, K, generator=generator).to(dtype)


def dense(experts, x, index, weights):
    gate_up, down = experts.dequantize()
    out = torch.zeros(len(x), HIDDEN, dtype=torch.float64)
    for token in range(len(x)):
        for slot in range(K):
            gate, up = linear(x[token].double(), gate_up[index[token, slot]].double()).chunk(2)
            hidden = silu(gate) * up
            out[token] += linear(hidden, down[index[token, slot]].double()) * weights[token, slot]
    return out


@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_forward_is_the_mixture_of_the_dequantized_experts(tokens):
    experts = mixture()
    want = dense(experts, *batch(tokens))
    # f32 sums of 64 and 96 products, twice in a row
    assert (experts(*batch(tokens)).double() - want).norm() <= 1e-6 * want.norm()


def test_an_expert_gives_the_bits_of_its_layers():
    experts = mixture(W4)
    x, index, weights = batch(1)
    hidden = [experts.get_submodule(str(int(i))) for i in index[0]]
    outs = [e.down_proj(silu(e.gate_proj(x)) * e.up_proj(x)) * weights[:, [i]] for i, e in enumerate(hidden)]
    assert_same_bits(experts(x, index, weights), torch.stack(outs, 1).sum(1))


def test_an_index_beyond_the_experts_adds_nothing():
    experts = mixture()
    x, index, weights = batch(6)
    away = index.clone()
    away[2, 1], away[4] = EXPERTS, EXPERTS + 3
    silent = weights.clone()
    silent[2, 1], silent[4] = 0, 0
    assert torch.equal(experts(x, away, weights), experts(x, index, silent))


def test_state_dict_has_matrices_of_each_expert_and_copies_are_equal():
    experts = mixture(W4)
    state = experts.state_dict()
    names = {f"{i}.{p}.{t}" for i in range(EXPERTS) for p in ("gate_proj", "up_proj", "down_proj")
             for t in ("planes", "scales", "offsets")}  # fmt: skip
    assert state.keys() == names
    empty = QuantExperts(
        [
            QuantExpert(*(QuantLinear(k, n, False, W4) for n, k in ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))))
            for _ in range(EXPERTS)
        ],
        torch.nn.SiLU(),
    )
    empty.load_state_dict(state)
    for twin in (empty, copy.deepcopy(experts), pickle.loads(pickle.dumps(experts))):
        assert_same_bits(twin(*batch(20)), experts(*batch(20)))


def test_gradient_reaches_the_input_and_the_routing_weights():
    experts = mixture()
    x, index, weights = batch(7)
    x.requires_grad_(), weights.requires_grad_()
    experts(x, index, weights).square().sum().backward()
    x2, weights2 = (t.detach().clone().requires_grad_() for t in (x, weights))
    dense(experts, x2, index, weights2).square().sum().backward()
    for ours, theirs in ((x, x2), (weights, weights2)):
        assert (ours.grad - theirs.grad).norm() <= 1e-5 * theirs.grad.norm()


def test_operator_compile_and_export():
    experts = mixture(W4)
    x, index, weights = batch(9)
    want = experts(x, index, weights)
    layers = [experts.get_submodule(f"{i}.up_proj").weight for i in range(EXPERTS)]
    counts = torch.tensor([3, 0, 2, 1, 3])
    torch.library.opcheck(torch.ops.tmac.grouped_linear.default, (x, counts, layers, WIDTH))
    torch.library.opcheck(torch.ops.tmac.grouped_linear.default, (x.clone().requires_grad_(), counts, layers, WIDTH))
    assert_same_bits(torch.compile(experts, fullgraph=True, backend="aot_eager")(x, index, weights), want)
    assert_same_bits(torch.export.export(experts, (x, index, weights)).module()(x, index, weights), want)


@pytest.mark.parametrize("counts", [[5, 5, 0, 0, 0], [1, 1], [-1, 1, 0, 0, 0]])
def test_counts_that_do_not_fit_are_refused(counts):
    experts = mixture(W4)
    layers = [experts.get_submodule(f"{i}.up_proj").weight for i in range(EXPERTS)]
    with pytest.raises(ValueError, match="do not fit 5 weights and 9 rows"):
        torch.ops.tmac.grouped_linear(batch(9)[0], torch.tensor(counts), layers, WIDTH)


def test_experts_of_other_shapes_are_refused():
    right = [random_layer(W4, n, k, bias=False) for n, k in ((WIDTH, HIDDEN), (WIDTH, HIDDEN), (HIDDEN, WIDTH))]
    wrong = random_layer(QuantSpec(2, 32), HIDDEN, WIDTH, bias=True)
    with pytest.raises(ValueError, match=r"1.down_proj must be \[64, 96\] without a bias"):
        QuantExperts([QuantExpert(*right), QuantExpert(*right[:2], wrong)], torch.nn.SiLU())
    with pytest.raises(ValueError, match="at least one expert"):
        QuantExperts([], torch.nn.SiLU())
