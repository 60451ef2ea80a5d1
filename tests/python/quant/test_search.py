import math

import pytest

pytest.importorskip("torch", reason="needs the extra tmac-cpu[torch]")

from tmac.quant.matrix import Matrix
from tmac.quant.options import Option, size_of
from tmac.quant.planner import Planner
from tmac.quant.search import Goal, Measurement, Search, Trial
from tmac.quant.trial_log import TrialLog
from tmac.spec import QuantSpec

WIDTHS = (1, 2, 3, 4, 5, 6, 8)
STOP = RuntimeError("killed")


class Maker:
    """Matrices whose loss falls four times with every bit, a recipe that is better than the screening by a half, and
    sequential codes that are better by a fifth."""

    def __init__(self, count=12):
        self.matrices = [Matrix(f"layer.{index}", self.rows(index), 128) for index in range(count)]
        self.made = []

    def rows(self, index):
        return 8

    def loss(self, index, spec):
        return (index + 1) * 0.03 * 4.0**-spec.bits

    def screen(self):
        return [
            [
                Option(spec, size_of(spec, self.rows(index), 128), 2 * self.loss(index, spec))
                for spec in (QuantSpec(bits, 64) for bits in WIDTHS)
            ]
            for index in range(len(self.matrices))
        ]

    def make(self, wanted):
        self.made += [(matrix.name, spec) for matrix, spec in wanted]
        return [self.loss(self.matrices.index(matrix), spec) for matrix, spec in wanted]


class FakeJudge:
    """Measures `factor` times the predicted loss, within an interval of `width` nats."""

    stages = ("probe", "full")
    full_count = 100_000
    rule = "fake"

    def __init__(self, factor=1.7, width=0.0004, sequential=0.8, fail_at=None):
        self.factor, self.width, self.sequential, self.fail_at = factor, width, sequential, fail_at
        self.calls = []

    def true_nats(self, plan, mode):
        """What the search cannot know: not quite proportional to what is predicted."""
        return self.factor * plan.loss**1.05 * (self.sequential if mode == "sequential" else 1.0)

    def measure(self, trial, stage):
        self.calls.append((trial.key, stage))
        if self.fail_at is not None and len(self.calls) == self.fail_at:
            raise STOP
        nats = self.true_nats(trial.plan, trial.mode)
        count = 20_000 if stage == "probe" else self.full_count
        return Measurement(math.expm1(nats), math.expm1(nats + self.width * math.sqrt(1e5 / count)), count)


def searching(path, judge, goal=None, clock=None, maker=None, **options):
    log = TrialLog(path / "trials.jsonl", {"model": "m"})
    maker = maker or Maker()
    options.setdefault("sequential", True)
    if clock is not None:
        options["clock"] = clock
    goal = goal or Goal(max_loss=0.01)
    search = Search(Planner(maker), lambda plan, mode: Trial(plan, mode, None), judge, log, goal, **options)
    try:
        return search.run()
    finally:
        log.close()


def test_the_smallest_model_under_the_bound_is_found(tmp_path):
    judge = FakeJudge()
    outcome = searching(tmp_path, judge)
    assert outcome.held
    assert outcome.mode == "sequential"
    assert outcome.measured["measured"]["upper"] <= 0.01
    assert outcome.reason == "the next smaller trial fails"
    assert outcome.smaller["measured"]["upper"] > 0.01
    assert outcome.smaller["bits"] >= outcome.measured["bits"] / 1.0226
    full = [call for call in judge.calls if call[1] == "full"]
    assert len(full) <= 4
    assert len(judge.calls) == len(set(judge.calls)) <= 9


def test_no_plan_of_the_same_kind_is_much_smaller(tmp_path):
    """Against plans of every size: none below the one that was found holds the bound."""
    judge = FakeJudge()
    outcome = searching(tmp_path, judge)
    planner = Planner(Maker())
    for percent in range(70, 98):
        plan = planner.plan(size=outcome.plan.size * percent / 100)
        assert math.expm1(judge.true_nats(plan, "sequential") + judge.width) > 0.01


class TopHeavy(Maker):
    """Its first matrix has two thirds of all weights, and most of the loss."""

    def rows(self, index):
        return 8 * 24 if index == 0 else 8

    def loss(self, index, spec):
        return super().loss(index, spec) * (30 if index == 0 else 1)


@pytest.mark.parametrize("max_loss", [0.002, 0.005, 0.01, 0.02, 0.05])
def test_a_matrix_with_most_of_the_weights_leaves_no_gap(tmp_path, max_loss):
    judge = FakeJudge()
    outcome = searching(tmp_path, judge, Goal(max_loss=max_loss), maker=TopHeavy(), sequential=False)
    assert outcome.held
    best = min(
        plan.size
        for plan in (Planner(TopHeavy()).plan(size=outcome.plan.size * part / 100) for part in range(60, 101))
        if math.expm1(judge.true_nats(plan, "single") + judge.width) <= max_loss
    )
    assert best >= outcome.plan.size / 1.023


def test_sequential_codes_are_dropped_where_they_lose_more(tmp_path):
    assert searching(tmp_path, FakeJudge(sequential=1.3)).mode == "single"


def test_a_bit_budget_gives_the_best_model(tmp_path):
    judge = FakeJudge()
    outcome = searching(tmp_path, judge, Goal(bits=3.2))
    assert outcome.held
    assert 3.1 < outcome.plan.bits_per_weight <= 3.2
    assert outcome.mode == "sequential"
    assert [stage for _, stage in judge.calls] == ["probe", "probe", "full"]


def test_a_bit_budget_below_the_smallest_model(tmp_path):
    outcome = searching(tmp_path, FakeJudge(), Goal(bits=0.5))
    assert not outcome.held
    assert outcome.reason == "the smallest model there is takes more"
    assert outcome.plan.size == Planner(Maker()).smallest


def test_an_impossible_bound_gives_the_best_model(tmp_path):
    class Lossy(FakeJudge):
        def true_nats(self, plan, mode):
            return 0.02 + super().true_nats(plan, mode)

    outcome = searching(tmp_path, Lossy())
    assert not outcome.held
    assert outcome.reason.startswith("no model holds the bound")
    assert outcome.smaller is None
    assert outcome.plan.size == Planner(Maker()).plan(loss=0.0).size


def test_a_bound_that_the_smallest_model_holds(tmp_path):
    outcome = searching(tmp_path, FakeJudge(), Goal(max_loss=50.0))
    assert outcome.held
    assert outcome.reason == "there is no smaller model"
    assert outcome.plan.size == Planner(Maker()).smallest


def test_a_loss_below_nothing_is_no_trouble(tmp_path):
    class Better(FakeJudge):
        def measure(self, trial, stage):
            return Measurement(-0.001, -0.0005, 100)

    assert searching(tmp_path, Better()).held


def test_codes_are_made_for_what_is_chosen_and_no_more(tmp_path):
    maker = Maker()
    planner = Planner(maker)
    plan = planner.plan(loss=0.01)
    assert set(plan.specs.items()) <= set(maker.made)
    assert len(maker.made) == len(set(maker.made)) < 4 * len(maker.matrices)
    assert plan.loss == pytest.approx(math.fsum(maker.loss(i, option.spec) for i, option in enumerate(plan.options)))


def test_a_search_that_is_stopped_anywhere_ends_alike(tmp_path):
    judge = FakeJudge()
    expected = searching(tmp_path / "whole", judge)
    calls = len(judge.calls)
    for fail_at in range(1, calls + 1):
        path = tmp_path / str(fail_at)
        with pytest.raises(RuntimeError, match="killed"):
            searching(path, FakeJudge(fail_at=fail_at))
        judge = FakeJudge()
        outcome = searching(path, judge)
        assert (outcome.plan.key, outcome.mode, outcome.reason) == (expected.plan.key, expected.mode, expected.reason)
        assert outcome.measured["measured"] == expected.measured["measured"]
        assert len(judge.calls) == calls - (fail_at - 1)


def test_a_search_that_is_repeated_measures_nothing(tmp_path):
    first = searching(tmp_path, FakeJudge())
    judge = FakeJudge()
    assert searching(tmp_path, judge).plan.key == first.plan.key
    assert judge.calls == []


def test_another_goal_uses_the_same_log(tmp_path):
    searching(tmp_path, FakeJudge())
    judge = FakeJudge()
    outcome = searching(tmp_path, judge, Goal(max_loss=0.05))
    other = FakeJudge()
    assert outcome.plan.key == searching(tmp_path / "other", other, Goal(max_loss=0.05)).plan.key
    assert len(judge.calls) <= len(other.calls)


class Clock:
    """Every look at it takes a second."""

    def __init__(self, step=1.0):
        self.now, self.step = 0.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_a_budget_ends_the_search_and_its_decision_is_repeated(tmp_path):
    judge = FakeJudge()
    outcome = searching(tmp_path, judge, clock=Clock(), budget=9.0)
    assert outcome.reason == "the time was used up"
    assert judge.calls[-1][1] == "full"
    again = FakeJudge()
    repeated = searching(tmp_path, again, clock=Clock(0.0), budget=9.0)
    assert (repeated.plan.key, repeated.mode, repeated.held) == (outcome.plan.key, outcome.mode, outcome.held)
    assert again.calls == []


def test_a_longer_budget_goes_on_where_a_shorter_one_ended(tmp_path):
    searching(tmp_path, FakeJudge(), clock=Clock(), budget=9.0)
    judge = FakeJudge()
    assert searching(tmp_path, judge, clock=Clock(), budget=1e6).reason == "the next smaller trial fails"
    assert judge.calls
    assert searching(tmp_path, FakeJudge()).reason == "the next smaller trial fails"


def test_the_time_before_the_first_trial_counts(tmp_path):
    judge = FakeJudge()
    outcome = searching(tmp_path, judge, clock=Clock(), budget=1000.0, started=-1000.0)
    assert outcome.reason == "the time was used up"
    assert len(judge.calls) == 2


def test_the_least_budget_still_gives_a_model(tmp_path):
    judge = FakeJudge()
    outcome = searching(tmp_path, judge, clock=Clock(), budget=1e-9)
    assert outcome.measured["stage"] == "full"
    assert len(judge.calls) == 2


@pytest.mark.parametrize("values", [{}, {"max_loss": 0.01, "bits": 3.0}, {"max_loss": 0.0}, {"bits": math.nan}])
def test_a_goal_without_meaning(values):
    with pytest.raises(ValueError, match="auto_quantize"):
        Goal(**values)
