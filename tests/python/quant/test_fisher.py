"""Mean square gradients, against autograd on the whole model, and what they predict, against what is measured."""

import pytest
import torch

from tmac.quant.fisher import _drawn, fisher
from tmac.quant.gather import gather
from tmac.quant.tape import Tape

from .chain import Chain, ids

TEXT = ids(64, 32)


def divergence(reference, logits):
    """KL, in nats per token."""
    old, new = reference.log_softmax(-1), logits.log_softmax(-1)
    return float((old.exp() * (old - new)).sum(-1).mean())


def test_the_head_reads_no_more_tokens_than_a_window_has():
    source, lengths = Chain(1), []
    run = source.run

    def noting(index, module, hidden):
        lengths.append(hidden.shape[1])
        return run(index, module, hidden)

    source.run = noting
    fisher(source, TEXT)
    assert max(lengths) == TEXT.shape[1]


@pytest.mark.parametrize("batch_tokens", [32, 100, 4096])
def test_squares_are_those_of_autograd_on_the_whole_model(batch_tokens):
    source = Chain(2, cap=1.5)
    found = fisher(source, TEXT, batch_tokens=batch_tokens, seed=3)
    hidden = source.begin(TEXT).requires_grad_()
    outputs, x = {}, hidden
    for index, module in enumerate(source.modules):
        for name, layer in source.linears(index, module).items():
            layer.register_forward_hook(lambda layer, inputs, output, name=name: outputs.update({name: output}))
        x = module(x)
    chances = x.detach().flatten(0, 1).softmax(-1)
    draws = torch.rand(TEXT.numel(), generator=torch.Generator().manual_seed(3))
    labels = _drawn(chances, draws)
    loss = torch.nn.functional.cross_entropy(x.flatten(0, 1), labels, reduction="sum")
    head = outputs.pop("2.head")
    gradients = torch.autograd.grad(loss, [hidden, *outputs.values()], retain_graph=True)
    torch.testing.assert_close(found.embedding, gradients[0].square().flatten(0, 1).mean(0), rtol=1e-4, atol=1e-9)
    for name, gradient in zip(outputs, gradients[1:], strict=True):
        torch.testing.assert_close(
            found.row_weight[name], gradient.square().flatten(0, 1).mean(0), rtol=1e-4, atol=1e-9
        )
    slope = 1 - (head / 1.5).tanh().square()
    expected = (chances * (1 - chances) * slope.detach().flatten(0, 1).square()).mean(0)
    torch.testing.assert_close(found.row_weight["2.head"], expected, rtol=1e-4, atol=1e-9)
    assert found.tokens == TEXT.numel()
    assert list(found.row_weight) == [name for index in range(3) for name in source.layers(index)]


@pytest.mark.parametrize(("mixes", "least", "most"), [(False, 0.7, 1.4), (True, 0.3, 1.5)])
def test_the_loss_that_errors_of_weights_cost_is_predicted(mixes, least, most):
    """Tokens that do not see each other leave the sampling of labels and errors; those that do, common parts of x."""
    source = Chain(2, mixes=mixes)
    statistics, sensitivity = gather(source, TEXT), fisher(source, TEXT)
    reference = source.logits(TEXT)
    generator = torch.Generator().manual_seed(1)
    ratios, predictions, changes = [], 0.0, []
    for index, module in enumerate(source.modules):
        for name, layer in source.linears(index, module).items():
            error = 0.01 * torch.randn(layer.weight.shape, generator=generator)
            predicted = 0.5 * float((sensitivity.row_weight[name] * statistics[name].output_error(error)).sum())
            layer.weight += error
            ratios.append(predicted / divergence(reference, source.logits(TEXT)))
            layer.weight -= error
            predictions += predicted
            changes.append((layer, error))
    mean = sum(ratios) / len(ratios)
    assert least < mean < most, ratios
    for layer, error in changes:
        layer.weight += error
    assert least < predictions / divergence(reference, source.logits(TEXT)) < most


def test_the_embedding_too():
    source = Chain(2, mixes=False)
    sensitivity = fisher(source, TEXT)
    reference = source.logits(TEXT)
    error = 0.01 * torch.randn(source.embedding.weight.shape, generator=torch.Generator().manual_seed(2))
    squares = error[TEXT].square().flatten(0, 1).mean(0)
    source.embedding.weight.data += error
    predicted = 0.5 * float((sensitivity.embedding * squares).sum())
    assert 0.7 < predicted / divergence(reference, source.logits(TEXT)) < 1.4


def test_labels_are_drawn_as_often_as_they_are_likely():
    chances = torch.tensor([[0.0, 0.5, 0.0, 0.3, 0.2, 0.0]]).repeat(20000, 1)
    drawn = _drawn(chances, torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    counts = torch.bincount(drawn, minlength=6) / 20000
    assert (counts - chances[0]).abs().max() < 4 * (0.25 / 20000) ** 0.5  # four standard deviations
    assert counts[[0, 2, 5]].tolist() == [0, 0, 0]
    assert _drawn(chances[:2], torch.tensor([0.0, 1.0])).tolist() == [1, 5]


def test_one_block_in_memory_each_twice():
    source = Chain(3)
    fisher(source, TEXT)
    assert source.entered == [0, 1, 2, 3, 2, 1, 0]


def test_gradients_are_not_wanted_of_the_caller():
    with torch.no_grad():
        first = fisher(Chain(), TEXT)
    second = fisher(Chain(), TEXT)
    assert torch.equal(first.embedding, second.embedding)
    assert not torch.equal(first.embedding, fisher(Chain(), TEXT, seed=1).embedding)


def test_a_layer_without_tokens_costs_nothing():
    source = Chain(1)
    source.modules[0].forward = lambda x: x + source.modules[0].q(x)
    assert fisher(source, TEXT).row_weight["0.up"].tolist() == [0.0] * 16


def test_gradients_that_are_no_numbers_name_the_layer():
    source = Chain(2)
    source.modules[1].out.weight[:] = float("nan")
    with pytest.raises(ValueError, match=r"\[fisher\] the gradient at the output of 2.head holds NaN or Inf"):
        fisher(source, TEXT)
    with pytest.raises(ValueError, match=r"\[fisher\] expected a text of at least 256 tokens"):
        fisher(source, TEXT.flatten()[:200])


class Killed(BaseException):
    """A kill: nothing catches it."""


def dying_after(source, steps):
    """The same source, whose life ends when a block is wanted after so many."""
    block, left = source.block, [steps]

    def dying(index):
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        return block(index)

    source.block = dying
    return source


def test_a_call_that_is_killed_goes_on_with_the_block_where_it_was(tmp_path):
    expected = fisher(Chain(3), TEXT)
    for steps in range(7):
        cache = tmp_path / str(steps)
        with pytest.raises(Killed):
            fisher(dying_after(Chain(3), steps), TEXT, cache=cache)
        source = Chain(3)
        found = fisher(source, TEXT, cache=cache)
        assert source.entered == [0, 1, 2, 3, 2, 1, 0][steps:]
        assert torch.equal(found.embedding, expected.embedding)
        assert all(torch.equal(found.row_weight[name], value) for name, value in expected.row_weight.items())
        assert [path.name for path in cache.glob("*/*")] == ["fisher.safetensors"]


def test_a_damaged_input_is_computed_again(tmp_path):
    expected = fisher(Chain(3), TEXT)
    with pytest.raises(Killed):
        fisher(dying_after(Chain(3), 5), TEXT, cache=tmp_path)
    (path,) = tmp_path.glob("*/input-00001.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    source = Chain(3)
    assert torch.equal(fisher(source, TEXT, cache=tmp_path).embedding, expected.embedding)
    assert source.entered == [0, 1, 2, 3, 2, 1, 0]


def test_a_kill_behind_the_result_leaves_nothing_for_good(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Tape, "clear", lambda tape: None)
        fisher(Chain(2), TEXT, cache=tmp_path)
    assert len(list(tmp_path.glob("*/*"))) > 1
    source = Chain(2)
    fisher(source, TEXT, cache=tmp_path)
    assert not source.entered
    assert [path.name for path in tmp_path.glob("*/*")] == ["fisher.safetensors"]
