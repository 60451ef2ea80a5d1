"""Options of matrices, what they are predicted to cost, and the files that codes are kept in."""

import itertools

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra tmac-cpu[torch]")

import torch

from tmac import QuantSpec
from tmac.quant.codes_cache import CodesCache, Stored
from tmac.quant.matrix import Matrix, bits_per_weight, bytes_per_token
from tmac.quant.methods.rtn import round_to_nearest
from tmac.quant.options import WIDTHS, formats, sample_rows, screen, size_of, spec_text
from tmac.quant.sensitivity import Sensitivities, of_both, of_embedding, of_linear, token_frequency
from tmac.quant.statistics import LayerStatistics

SPECS = [spec for width in WIDTHS for spec in formats(width)]


def statistics(columns, seed=0):
    x = torch.randn(200, columns, generator=torch.Generator().manual_seed(seed))
    return LayerStatistics(200, x.T @ x / 200, x.abs().amax(0))


def weight_of(rows, columns, seed=1):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", [*SPECS, QuantSpec(2, 64, "ternary"), QuantSpec(4, 32, zero_point="integer")], ids=str)
@pytest.mark.parametrize("columns", [96, 576])
def test_the_size_is_that_of_the_tensors(spec, columns):
    codes = round_to_nearest(weight_of(5, columns), spec)
    assert size_of(codes.spec, 5, columns) == 8 * sum(each.nbytes for each in codes.to_tensors().values())


def test_screened_options_lose_what_they_say_and_none_beats_another():
    weight, known = weight_of(48, 128), of_linear(statistics(128), torch.rand(48))
    options = screen(weight, known, lambda part, spec, about: round_to_nearest(part, spec, about.statistics))
    assert len(options) > 5
    for here, there in itertools.pairwise(options):
        assert here.size < there.size
        assert here.loss > there.loss
    for option in options:  # with fewer rows than a sample has, it is exact
        codes = round_to_nearest(weight, option.spec, known.statistics)
        assert option.loss == pytest.approx(known.loss(torch.from_numpy(codes.dequantize()) - weight), rel=1e-5)


def test_a_sample_of_rows_is_even_and_has_no_row_twice():
    rows = sample_rows(49152)
    assert len(set(rows.tolist())) == 192
    assert rows[0] == 0
    assert rows[-1] == 49151
    assert sample_rows(5).tolist() == [0, 1, 2, 3, 4]


def test_the_loss_of_a_linear_layer():
    known, rows, error = statistics(24), torch.rand(7), weight_of(7, 24)
    exact = 0.5 * sum(
        float(rows[i]) * float(error[i].double() @ known.hessian.double() @ error[i].double()) for i in range(7)
    )
    assert of_linear(known, rows).loss(error) == pytest.approx(exact, rel=1e-5)


def test_the_loss_of_an_embedding_and_of_a_matrix_that_is_head_as_well():
    frequency, gradient, error = torch.rand(9), torch.rand(12), weight_of(9, 12)
    embedding = of_embedding(frequency, gradient, 100)
    expected = 0.5 * float((frequency.double()[:, None] * gradient.double() * error.double() ** 2).sum())
    assert embedding.loss(error) == pytest.approx(expected, rel=1e-5)
    head = of_linear(statistics(12), torch.rand(9))
    both = of_both(head, embedding)
    assert both.loss(error) == pytest.approx(expected + head.loss(error), rel=1e-5)
    weights = [float(part.terms[0].rows.mean()) for part in (head, embedding)]
    mixed = (weights[0] * statistics(12).hessian + weights[1] * torch.diag(gradient)) / sum(weights)
    torch.testing.assert_close(both.statistics.hessian, mixed)


def test_what_nothing_has_reached_is_said_to_be_so():
    dead = LayerStatistics(10, torch.zeros(4, 4), torch.zeros(4))
    assert not of_linear(dead, torch.ones(3)).activated
    matrices = [Matrix("a", 3, 4), Matrix("b", 3, 4), Matrix("e", 5, 4, "embedding")]
    found = Sensitivities({"a": statistics(4)}, {"a": torch.ones(3)}, torch.full((5,), 0.2), torch.ones(4), 10)
    assert [found(matrix).activated for matrix in matrices] == [True, False, True]
    assert found(matrices[1]).loss(torch.ones(3, 4)) > 0


def test_rows_of_a_sensitivity():
    known, error = of_linear(statistics(6), torch.rand(8)), weight_of(8, 6)
    rows = torch.tensor([1, 5])
    other = torch.zeros_like(error)
    other[rows] = error[rows]
    assert known.of_rows(rows).loss(error[rows]) == pytest.approx(known.loss(other))


def test_frequencies_of_tokens():
    found = token_frequency(torch.tensor([[0, 0, 2], [0, 2, 2]]), 4)
    torch.testing.assert_close(found, torch.tensor([3.5, 0.5, 3.5, 0.5]) / 8)


def test_two_sizes():
    matrices = [Matrix("e", 100, 32, "embedding"), Matrix("l", 10, 32), Matrix("t", 100, 32, "embedding", None, ("h",))]
    assert bits_per_weight(matrices, [12800, 1280, 9600]) == (12800 + 1280 + 9600) / (6400 + 320)
    assert bytes_per_token(matrices, [12800, 1280, 9600]) == 16 + 160 + 1200


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (QuantSpec(3, 64), "W3 g64"),
        (QuantSpec(2, 64, fixed_zero=1.5), "W2 g64 zero 1.5"),
        (QuantSpec(4, 32, zero_point="offset", scale_format="two_level"), "W4 g32 two-level offset"),
        (QuantSpec(2, 128, "ternary"), "ternary g128"),
    ],
)
def test_specs_in_a_few_characters(spec, text):
    assert spec_text(spec) == text


@pytest.mark.parametrize("spec", [SPECS[3], SPECS[8], SPECS[14], QuantSpec(8, 64)], ids=str)
def test_codes_come_back_from_their_file(tmp_path, spec):
    codes = round_to_nearest(weight_of(6, 70), spec)
    cache = CodesCache(tmp_path / "layers", "context")
    assert cache.get("a.b", spec, "gptq") is None
    assert cache.loss("a.b", spec, "gptq") is None
    cache.put("a.b", spec, "gptq", Stored(codes, 0.1 + 0.2, "rtn"))
    found = cache.get("a.b", spec, "gptq")
    assert found.loss == cache.loss("a.b", spec, "gptq") == 0.1 + 0.2
    assert found.recipe == "rtn"
    assert found.codes.spec == codes.spec
    assert np.array_equal(found.codes.dequantize(), codes.dequantize())
    for other in (CodesCache(tmp_path / "layers", "other").get("a.b", spec, "gptq"), cache.get("a.b", spec, "rtn")):
        assert other is None


def test_a_damaged_file_counts_as_absent(tmp_path):
    spec = QuantSpec(3, 64)
    cache = CodesCache(tmp_path, "context")
    cache.put("a", spec, "gptq", Stored(round_to_nearest(weight_of(6, 64), spec), 1.0, "gptq"))
    path = cache.path("a", spec, "gptq")
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        assert cache.get("a", spec, "gptq") is None
        assert cache.loss("a", spec, "gptq") is None


def test_a_layer_without_gradients_counts_as_the_others_of_its_kind():
    weights = {
        "0.up": torch.full((3,), 2.0),
        "1.up": torch.full((3,), 4.0),
        "2.up": torch.zeros(3),
        "0.down": torch.ones(3),
    }
    found = Sensitivities(
        {name: statistics(4) for name in (*weights, "0.gate")}, weights, torch.full((5,), 0.2), torch.ones(4), 10
    )

    def rows(name):
        return found(Matrix(name, 3, 4, "linear", 0)).terms[0].rows.tolist()

    assert rows("0.up") == [2.0] * 3
    assert rows("2.up") == [3.0] * 3
    assert rows("0.gate") == pytest.approx([7 / 3] * 3)
