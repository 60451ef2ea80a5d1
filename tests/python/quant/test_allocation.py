import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the extra tmac-cpu[torch]")

from tmac.quant.allocation import Point, fit_loss, fit_size, lower_hull, total

options = st.lists(
    st.builds(Point, st.integers(1, 40), st.integers(0, 100).map(float)),
    min_size=1,
    max_size=4,
)
problems = st.lists(options, min_size=1, max_size=4)


def every_choice(curves):
    return [total(curves, chosen) for chosen in itertools.product(*(range(len(curve)) for curve in curves))]


def steps(curves):
    """(size, loss) of the steps of all hulls."""
    for curve in curves:
        hull = [curve[index] for index in lower_hull(curve)]
        for here, there in itertools.pairwise(hull):
            yield there.size - here.size, here.loss - there.loss


@settings(max_examples=300, deadline=None)
@given(options)
def test_no_option_is_below_the_hull(points):
    hull = [points[index] for index in lower_hull(points)]
    for here, there in itertools.pairwise(hull):
        assert here.size < there.size
        assert here.loss > there.loss
        for point in points:
            if here.size <= point.size <= there.size:
                line = here.loss - (here.loss - there.loss) * (point.size - here.size) / (there.size - here.size)
                assert point.loss >= line - 1e-9
    assert hull[0].size == min(point.size for point in points)
    assert hull[-1].loss == min(point.loss for point in points)


@settings(max_examples=300, deadline=None)
@given(problems, st.integers(0, 170))
def test_a_size_is_filled_as_well_as_by_trying_everything_but_for_one_step(curves, size):
    found = total(curves, fit_size(curves, size))
    possible = [choice.loss for choice in every_choice(curves) if choice.size <= size]
    smallest = sum(min(point.size for point in curve) for curve in curves)
    if smallest > size:
        assert found.size == smallest
        return
    assert found.size <= size
    largest_step = max((loss for _, loss in steps(curves)), default=0.0)
    assert min(possible) - 1e-9 <= found.loss <= min(possible) + largest_step + 1e-9


@settings(max_examples=300, deadline=None)
@given(problems, st.integers(0, 400).map(float))
def test_a_loss_is_reached_as_small_as_by_trying_everything_but_for_one_step(curves, loss):
    found = total(curves, fit_loss(curves, loss))
    possible = [choice.size for choice in every_choice(curves) if choice.loss <= loss]
    least = math.fsum(min(point.loss for point in curve) for curve in curves)
    if not possible:
        assert found.loss == least
        return
    assert found.loss <= loss + 1e-9
    largest_step = max((size for size, _ in steps(curves)), default=0)
    assert min(possible) <= found.size <= min(possible) + largest_step


@settings(max_examples=200, deadline=None)
@given(problems)
def test_the_sizes_that_the_hulls_reach_together_are_exact(curves):
    """At every price of a bit the answer is the optimum of its own size."""
    gains = sorted({loss / size for size, loss in steps(curves)})
    for gain in gains:
        taken = 0
        for curve in curves:
            hull = [curve[index] for index in lower_hull(curve)]
            taken += next(
                (here.size for here, there in itertools.pairwise(hull)
                 if (here.loss - there.loss) / (there.size - here.size) < gain - 1e-12),
                hull[-1].size,
            )  # fmt: skip
        found = total(curves, fit_size(curves, taken))
        assert found.loss == pytest.approx(min(each.loss for each in every_choice(curves) if each.size <= taken))


def test_what_is_left_of_a_size_is_used():
    curves = [[Point(10, 9.0), Point(30, 1.0)], [Point(10, 3.0), Point(14, 2.5)]]
    assert fit_size(curves, 24) == [0, 1]
    assert fit_size(curves, 40) == [1, 0]


def test_equal_gains_are_taken_in_the_order_of_the_matrices():
    curves = [[Point(1, 2.0), Point(2, 1.0)]] * 3
    assert fit_size(curves, 5) == [1, 1, 0]
    assert fit_loss(curves, 4.0) == [1, 1, 0]


@pytest.mark.parametrize("points", [[], [Point(1, math.nan)], [Point(1, 1.0), Point(2, math.inf)]])
def test_options_without_a_loss_are_refused(points):
    with pytest.raises(ValueError, match="expected options with finite losses"):
        lower_hull(points)


def test_one_large_matrix_does_not_leave_a_gap():
    """A step of the large matrix that does not fit is made up for by a smaller one, on the hull or not."""
    large = [Point(100, 20.0), Point(120, 15.0), Point(140, 2.0)]  # the middle is above the hull
    small = [[Point(10, 2.0), Point(20, 1.5)], [Point(10, 2.0), Point(20, 1.5)]]
    found = fit_size([large, *small], 145)
    assert found == [1, 0, 0]
    assert fit_size([large, *small], 160) == [2, 0, 0]
    assert total([large, *small], fit_loss([large, *small], 18.5)) == Point(150, 18.5)
