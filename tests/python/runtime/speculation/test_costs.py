"""Running estimates."""

import pytest

from tmac.runtime.speculation.acceptance import Acceptance
from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.costs import DraftCosts, PassCosts, Running, monotone
from tmac.runtime.speculation.measure import gain


def test_a_running_mean_follows_and_ignores_one_outlier():
    mean = Running()
    for value in (2.0, 4.0, 3.0):
        mean.add(value)
    assert mean.value == pytest.approx(3.0)
    mean.add(1000.0)
    assert mean.value < 5
    for _ in range(30):
        mean.add(50.0)
    assert mean.value == pytest.approx(50.0, rel=0.01)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 1.0, 1.0), (2, 2.0, 1.0)], [(1, 1.0), (2, 2.0)]),
        ([(1, 1.0, 1e9), (2, 0.5, 1.0), (4, 3.0, 1.0)], [(1, 1.0), (2, 1.0), (4, 3.0)]),
        ([(2, 3.0, 1.0), (4, 1.0, 3.0)], [(2, 1.5), (4, 1.5)]),
    ],
)
def test_more_rows_never_cost_less(points, expected):
    found = monotone(points)
    assert [place for place, _ in found] == [place for place, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=1e-6)


def test_passes_between_those_that_were_measured_are_interpolated():
    costs = PassCosts(16)
    assert not costs.known
    costs.add(1, 10.0)
    assert costs.of(2) > costs.of(1) == 10.0
    costs.add(4, 16.0)
    assert [costs.of(rows) for rows in (1, 2, 3, 4, 7)] == pytest.approx([10, 12, 14, 16, 22])
    for _ in range(9):
        costs.add(8, 12.0)  # noise: more rows cannot be cheaper
    assert costs.of(8) == costs.of(4) > 12
    costs.add(1, 10.0)
    before = costs.of(4)
    costs.one.value = 20.0  # a longer text: all of it is slower
    assert costs.of(4) == pytest.approx(2 * before)


def test_numbers_of_rows_begin_with_what_lies_between_others():
    costs = PassCosts(16)
    for rows, seconds in ((1, 10.0), (2, 12.0), (8, 24.0)):
        costs.add(rows, seconds)
    costs.add(5, 36.0)  # one disturbed pass
    assert costs.of(5) == pytest.approx(18 + (36 - 18) / 3)


def test_no_more_rows_are_tried_than_twice_what_was_measured():
    costs = PassCosts(16)
    found = [costs.reach]
    for rows in (1, 3, 6, 12, 16):
        costs.add(rows, 10.0)
        found.append(costs.reach)
    assert found == [4, 4, 6, 12, 16, 16]


def test_one_strange_pass_is_doubted_and_two_are_believed():
    costs = PassCosts(16)
    for rows, seconds in ((1, 10.0), (4, 12.0), (1, 10.0), (4, 36.0)):
        costs.add(rows, seconds)
    dear = costs.of(4)
    costs.add(1, 30.0)
    assert costs.in_doubt
    assert costs.of(1) == 10.0
    costs.add(1, 10.0)  # it was one strange pass
    assert not costs.in_doubt
    assert costs.of(4) == pytest.approx(dear)
    costs.add(4, 36.0)
    for _ in range(2):
        costs.add(1, 30.0)
    assert not costs.in_doubt
    assert costs.of(1) == pytest.approx(30.0)
    assert costs.of(4) == pytest.approx(30.0)  # what was slow since the last pass of one row was so for that reason


def test_a_slower_machine_makes_a_draft_slower_too():
    costs = PassCosts(16)
    costs.add(1, 10.0)
    drafts = DraftCosts(costs)
    drafts.add_step("a", 4.0)
    for _ in range(2):
        costs.add(1, 20.0)
    assert drafts.step("a") == pytest.approx(4.0)  # it was measured in the same slow moment
    for _ in range(2):
        costs.add(1, 40.0)
    assert drafts.step("a") == pytest.approx(8.0)


def test_a_draft_costs_half_a_pass_before_it_is_measured():
    costs = PassCosts(16)
    costs.add(1, 10.0)
    drafts = DraftCosts(costs)
    assert drafts.step("a") == 5.0
    drafts.add_step("a", 1.0)
    drafts.add_behind("a", 10, 4.0)
    assert (drafts.step("a"), drafts.step("b")) == (1.0, 5.0)
    assert drafts.behind("a", 5) == pytest.approx(2.0)


def test_what_a_confidence_is_worth_is_measured():
    known = Acceptance()
    assert known.chance("a", 0.9) == 0.9
    for _ in range(500):
        known.add("a", 0.9, right=False)
        known.add("a", 0.1, right=True)
    assert known.chance("a", 0.9) < 0.05
    assert known.chance("a", 0.1) > 0.95
    assert known.chance("a", 0.5) == 0.5
    assert known.chance("b", 0.9) == 0.9


def test_a_text_begins_with_what_all_have_shown_and_goes_its_own_way():
    known = Acceptance()
    for _ in range(300):
        known.add_hit("a", right=True)
    text = known.of_text()
    assert text.hit("a") == known.hit("a") > 0.95
    for _ in range(20):
        text.add_hit("a", right=False)
    assert text.hit("a") < 0.4 < 0.8 < known.hit("a")
    assert known.of_text().hit("a") == known.hit("a")


def test_the_gain_of_a_chain():
    controller = Controller(16)
    for rows in range(1, 17):
        controller.passes.add(rows, 1.0)
    controller.drafts.add_step("a", 0.5)
    # 1 + a + ... + a^g tokens in 1 + g/2: the best g is 4 for a = 0.9
    assert gain(controller, "a", 0.9) == pytest.approx(max((1 - 0.9 ** (g + 1)) / 0.1 / (1 + g / 2) for g in range(16)))
    controller.drafts.add_step("b", 1.0)
    assert gain(controller, "b", 0.9) == 1.0
