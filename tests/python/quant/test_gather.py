"""Moments of the inputs of layers, against those of inputs that hooks have caught in a plain run."""

import copy

import pytest
import torch
from torch import nn

from tmac.nn.normed_linear import InputNorm, NormedLinear
from tmac.quant.gather import advance, gather, gather_block

from .chain import WIDTH, Chain, ids

TEXT = ids()


def caught(source, text, changed=None):
    """Layer -> its inputs f64 [tokens, in_features], of the whole model run at once."""
    found, handles = {}, []
    for index, module in enumerate(source.modules):
        for name, layer in source.linears(index, module).items():

            def keep(layer, inputs, name=name):
                found[name] = inputs[0].detach().double().flatten(0, -2)

            handles.append(layer.register_forward_pre_hook(keep))
    source.logits(text)
    for handle in handles:
        handle.remove()
    return found


def assert_moments(statistics, x, against=None):
    n = len(x)
    # f32 sums of n products in any order, and inputs that other batches round differently
    scale = x.square().sum(0).sqrt()
    bound = 2e-7 * (n + 30) ** 0.5 * 8 * scale[:, None] * scale / n
    assert ((statistics.hessian.double() - x.T @ x / n).abs() <= bound).all()
    assert torch.equal(statistics.hessian, statistics.hessian.T)
    torch.testing.assert_close(statistics.channel_max.double(), x.abs().amax(0), rtol=1e-5, atol=1e-6)
    assert statistics.tokens == n


@pytest.mark.parametrize("batch_tokens", [1, 64, 96, 4096])
@pytest.mark.parametrize("cache", [False, True])
def test_moments_of_every_layer(batch_tokens, cache, tmp_path):
    source = Chain()
    found = gather(source, TEXT, batch_tokens=batch_tokens, cache=tmp_path if cache else None)
    inputs = caught(source, TEXT)
    assert list(found) == [name for index in range(4) for name in source.layers(index)] == list(inputs)
    for name, x in inputs.items():
        assert_moments(found[name], x)
    assert found.missing == ()
    assert source.entered == [0, 1, 2, 3]


def test_a_text_is_cut_into_windows_and_its_rest_left_out():
    source, flat = Chain(), TEXT.flatten()
    found = gather(source, flat[:-1], window=32)
    assert found["0.q"].tokens == 7 * 32
    for name, x in caught(source, TEXT[:7]).items():
        assert_moments(found[name], x)


def test_batches_are_whole_windows_and_the_head_computes_no_logits():
    source = Chain()
    calls = []
    source.modules[-1].head.register_forward_hook(lambda *_: calls.append(1))
    gather(source, TEXT, batch_tokens=100)
    assert {shape[:2] for _, shape in source.runs} == {(3, 32), (2, 32)}
    assert calls == []


@pytest.mark.parametrize("cache", [False, True])
def test_layers_that_read_one_tensor_share_their_statistics(cache, tmp_path):
    found = gather(Chain(), TEXT, cache=tmp_path if cache else None)
    q, k = found["1.q"], found["1.k"]
    assert q is k
    assert q is not found["1.up"]


def test_a_tensor_that_was_changed_is_another_one():
    source = Chain(1)

    def forward(x):
        first = source.modules[0].q(x)
        x.mul_(2)
        return first + torch.nn.functional.pad(source.modules[0].k(x), (0, 4))

    source.modules[0].forward = forward
    found = gather(source, TEXT)
    torch.testing.assert_close(found["0.k"].hessian, 4 * found["0.q"].hessian)


def test_an_input_norm_is_part_of_the_input():
    source = Chain(1)
    norm = InputNorm(WIDTH, 1e-6)
    norm.weight.data = torch.rand(WIDTH)
    source.modules[0].q = NormedLinear(source.modules[0].q, norm).requires_grad_(False)
    x = norm(torch.nn.functional.layer_norm(source.begin(TEXT), [WIDTH])).detach().double().flatten(0, 1)
    assert_moments(gather(source, TEXT)["0.q"], x)


class Experts(nn.Module):
    """Two experts; tokens with a positive first channel go to the first one."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.up, self.out = (nn.Linear(WIDTH, WIDTH).requires_grad_(False) for _ in range(4))

    def forward(self, x):
        out = x.clone()
        for expert, chosen in ((self.q, x[..., 0] > 0), (self.k, x[..., 0] > 100)):
            out[chosen] = expert(x[chosen]) if chosen.any() or expert is self.q else x[chosen]
        return self.up(out)


@pytest.mark.parametrize("cache", [False, True])
def test_layers_without_tokens_are_missing(cache, tmp_path):
    source = Chain(1)
    source.modules[0] = Experts()
    for _ in range(2):
        found = gather(source, TEXT, cache=tmp_path if cache else None)
        assert found.missing == ("0.k", "0.out")
        assert list(found) == ["0.q", "0.up", "1.head"]
        assert found["0.q"].tokens == int((source.begin(TEXT)[..., 0] > 0).sum())
        with pytest.raises(KeyError):
            found["0.k"]


def test_an_expert_that_gets_an_empty_batch_is_missing():
    source = Chain(1)
    source.modules[0].forward = lambda x: x + source.modules[0].q(x[:0]).sum()
    assert "0.q" in gather(source, TEXT).missing


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_inputs_that_are_no_numbers_name_the_layer(bad):
    source = Chain()
    source.modules[1].up.bias[3] = bad
    source.modules[1].mixes = False
    expected = "1.out" if bad != bad else "2.q"  # tanh makes numbers of infinities
    if bad != bad:
        with pytest.raises(ValueError, match=rf"\[gather\] the input of {expected} holds NaN or Inf"):
            gather(source, TEXT)
    source.modules[1].out.weight[3, 3] = bad
    with pytest.raises(ValueError, match=r"\[gather\] the input of .* holds NaN or Inf"):
        gather(source, TEXT)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(127, dtype=torch.int64), "at least 128 tokens .in windows of 64., found 64"),
        (torch.zeros(4, 8, dtype=torch.int64), "found 32"),
        (torch.zeros(300), "expected integer ids"),
        (torch.zeros(2, 2, 200, dtype=torch.int64), "expected integer ids"),
    ],
)
def test_texts_that_are_none_or_too_short(bad, message):
    with pytest.raises(ValueError, match=rf"\[gather\].*{message}"):
        gather(Chain(), bad, window=64)


def test_one_block_with_inputs_of_its_own():
    source = Chain()
    hidden = source.begin(TEXT)
    with source.block(0) as module:
        found = gather_block(source, 0, module, hidden, batch_tokens=64)
        after = advance(source, 0, module, hidden, batch_tokens=64)
        torch.testing.assert_close(after, module(hidden))
    inputs = caught(source, TEXT)
    assert list(found) == list(source.layers(0))
    for name, statistics in found.items():
        assert_moments(statistics, inputs[name])
        assert statistics.cross is None
    assert torch.equal(hidden, source.begin(TEXT))


def test_a_block_runs_no_further_than_the_layers_asked_for():
    source, calls = Chain(), []
    source.modules[0].up.register_forward_hook(lambda *_: calls.append(1))
    with source.block(0) as module:
        found = gather_block(source, 0, module, source.begin(TEXT), names=["0.k", "0.up"])
        assert list(found) == ["0.k", "0.up"]
        assert calls == []
        with pytest.raises(ValueError, match=r"block 0 has no layer '0.none'"):
            gather_block(source, 0, module, source.begin(TEXT), names=["0.none"])


def test_cross_moments_with_the_float_block():
    source = Chain()
    rough = copy.deepcopy(source)
    for module in rough.modules[:2]:
        module.q.weight.add_(0.1 * torch.randn(WIDTH, WIDTH))
        module.k.weight.mul_(1.1)
    exact, near = caught(source, TEXT), caught(rough, TEXT)
    hidden_float = advance(source, 0, source.modules[0], source.begin(TEXT))
    hidden = advance(source, 0, rough.modules[0], source.begin(TEXT))
    found = gather_block(
        source, 1, rough.modules[1], hidden, hidden_float, module_float=source.modules[1], batch_tokens=96
    )
    for name, statistics in found.items():
        x, difference = near[name], exact[name] - near[name]
        assert_moments(statistics, x)
        assert difference.abs().max() > 1e-3
        torch.testing.assert_close(statistics.cross.double(), difference.T @ x / len(x), rtol=1e-4, atol=1e-6)


def test_cross_moments_need_both_models():
    source = Chain()
    hidden = source.begin(TEXT)
    with pytest.raises(ValueError, match="both hidden_float and module_float"):
        gather_block(source, 0, source.modules[0], hidden, hidden)
    with pytest.raises(ValueError, match="expected hidden_float of"):
        gather_block(source, 0, source.modules[0], hidden, hidden[:1], module_float=source.modules[0])
