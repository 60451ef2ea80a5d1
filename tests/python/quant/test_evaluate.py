"""Perplexity and next-token agreement, against counts made by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tmac.quant.evaluate import next_token_agreement, next_tokens, perplexity


class Model(nn.Module):
    """Logits that depend on the token and on its position in the window; `wrap` makes it look like Hugging Face's."""

    def __init__(self, table, wrap=False):
        super().__init__()
        self.table, self.wrap, self.lengths, self.modes = table, wrap, [], []

    def forward(self, ids):
        assert not torch.is_grad_enabled()
        self.lengths.append(ids.shape[1])
        self.modes.append(self.training)
        logits = self.table[ids]
        return SimpleNamespace(logits=logits) if self.wrap else logits


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(wrap, dtype):
    model = Model(torch.zeros(7, 7, dtype=dtype), wrap)
    assert perplexity(model, torch.arange(100) % 7, window=16) == pytest.approx(7, rel=1e-5)


def test_windows_start_afresh_and_their_first_token_does_not_count():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5]])
    ids = [0, 1, 1, 2, 0, 0, 2, 1, 0, 2, 1]
    model = Model(probabilities.log()).train()
    pairs = [(ids[i], ids[i + 1]) for i in range(10) if i % 4 != 3]  # windows of 4: 0-3, 4-7, 8-10
    expected = math.exp(-sum(math.log(probabilities[a, b]) for a, b in pairs) / len(pairs))
    assert perplexity(model, torch.tensor(ids), window=4) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, torch.tensor([ids]), window=4) == pytest.approx(expected, rel=1e-5)
    assert model.lengths[:3] == [4, 4, 3]
    assert not any(model.modes)
    assert model.training


def test_a_last_window_of_one_token_predicts_nothing():
    model = Model(torch.zeros(5, 5))
    assert perplexity(model, torch.arange(9) % 5, window=4) == pytest.approx(5, rel=1e-5)


def test_agreement_is_the_share_of_equal_choices():
    same = Model(torch.eye(4))
    other = Model(torch.eye(4)[[0, 1, 3, 2]])
    ids = torch.tensor([0, 1, 2, 3, 0, 1, 0, 1, 2, 0])
    assert next_tokens(other, ids, window=3).tolist() == [0, 1, 3, 2, 0, 1, 0, 1, 3, 0]
    assert next_token_agreement(same, same, ids, window=3) == 1
    assert next_token_agreement(same, other, ids, window=3) == pytest.approx(0.7)


@pytest.mark.parametrize("shape", [(1,), (0,), (1, 1), (2, 8), (1, 1, 8)])
def test_texts_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[evaluate\]"):
        perplexity(Model(torch.zeros(5, 5)), torch.zeros(shape, dtype=torch.long))
    with pytest.raises(ValueError, match="window=1"):
        perplexity(Model(torch.zeros(5, 5)), torch.zeros(8, dtype=torch.long), window=1)
