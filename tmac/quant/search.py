"""The search for the smallest model whose loss stays under a bound, or the best one of a size.

Trials are proposed by a prediction of the loss that adds up over matrices, corrected by one factor that the measured
trials give, and judged by the real metric. All decisions follow from what was measured, so that a search which takes
measurements from its log comes to the same end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from tmac.codes import Codes
from tmac.quant.planner import Plan, Planner
from tmac.quant.trial_log import TrialLog

Mode = Literal["single", "sequential"]
Stage = Literal["probe", "full"]
PROBES, FINALS = 4, 7
STEP = 0.015  # of the size: what is smaller than a passing trial by this much is tried, too
STEPS = (STEP, 2 * STEP, 4 * STEP, 8 * STEP, 16 * STEP, 32 * STEP)  # until a larger plan is found
NEAR = 0.02  # of the size: probes that are this near each other have found the factor
LEAST_FACTOR = 0.05
MOST_STEPS = 8.0  # a new plan aims at this many times the predicted loss of the last at most, or this part of it


@dataclass(frozen=True)
class Measurement:
    """What a trial lost, as a share: 0.01 is one per cent worse than the float model.

    Args:
        loss: the estimate.
        upper: the one-sided bound that the rule compares with.
        count: tokens or questions.
        about: more numbers for the report ("perplexity", "kl").
        probe: of a full measurement, the loss on what a probe takes; None where that is not known.
    """

    loss: float
    upper: float
    count: int
    about: Mapping[str, Any] = field(default_factory=dict)
    probe: float | None = None


@dataclass(frozen=True)
class Trial:
    """A model to be measured.

    Args:
        plan: the specs.
        mode: "single": every matrix for itself; "sequential": each with the inputs that the low-bit matrices before it
            give.
        codes: gives the codes of a matrix by its name.
    """

    plan: Plan
    mode: Mode
    codes: Callable[[str], Codes]

    @property
    def key(self) -> str:
        """A hash of what it is."""
        return f"{self.plan.key}-{self.mode}"


class Judge(Protocol):
    """Measures trials."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """("probe", "full"), or ("full",) where nothing cheaper says anything."""

    @property
    def rule(self) -> str:
        """The rule in a sentence, for the report."""

    def measure(self, trial: Trial, stage: Stage) -> Measurement:
        """A trial against the float model."""


@dataclass(frozen=True)
class Goal:
    """`max_loss`: as a share; the smallest model is wanted. `bits`: per weight; the best model is wanted.

    Raises:
        ValueError: not exactly one is given, or it is not positive.
    """

    max_loss: float | None = None
    bits: float | None = None

    def __post_init__(self) -> None:
        if (self.max_loss is None) == (self.bits is None):
            raise ValueError("[auto_quantize] expected either max_loss or bits")
        value = self.max_loss if self.bits is None else self.bits
        assert value is not None
        if not (math.isfinite(value) and value > 0):
            name = "max_loss" if self.bits is None else "bits"
            raise ValueError(f"[auto_quantize] {name} must be a positive number, found {value}")

    @property
    def key(self) -> str:
        return f"max_loss={self.max_loss!r}" if self.bits is None else f"bits={self.bits!r}"


@dataclass(frozen=True)
class Outcome:
    """Where a search ended.

    Args:
        plan, mode: of the trial that was chosen.
        measured: its entry in the log.
        held: whether it holds the bound; of a bit budget, whether it fits.
        smaller: the entry of the next smaller trial, which failed; None where there was none.
        reason: why it ended, in a sentence.
    """

    plan: Plan
    mode: Mode
    measured: Mapping[str, Any]
    held: bool
    smaller: Mapping[str, Any] | None
    reason: str


class OutOfTimeError(Exception):
    """The budget does not allow another trial."""


class Search:
    """One search.

    Args:
        planner: proposes.
        make_trial: gives a plan its codes.
        judge: measures.
        log: of what was measured.
        goal: what to find.
        sequential: also quantize with the inputs that the low-bit matrices give, and keep it where it is better.
        budget: seconds, over all runs of the same goal; at least one trial is measured in full.
        clock: seconds.
        started: what the clock showed when this run began; None: it begins now.
    """

    def __init__(
        self,
        planner: Planner,
        make_trial: Callable[[Plan, Mode], Trial],
        judge: Judge,
        log: TrialLog,
        goal: Goal,
        *,
        sequential: bool = False,
        budget: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self._planner, self._make_trial, self._judge, self._log, self._goal = planner, make_trial, judge, log, goal
        self._sequential, self._budget, self._clock = sequential, budget, clock
        self._started, self._before = clock() if started is None else started, log.seconds
        known = log.find("goal", goal.key)
        begun = known or log.add("goal", goal.key, elapsed=self._before)
        self._goal_began = float(begun["elapsed"])
        self._full: list[tuple[Plan, Mode, dict[str, Any]]] = []
        self._first_aim = 0.0  # the predicted loss to plan for, where the time ends before a plan is confirmed

    def run(self) -> Outcome:
        """Searches. Raises what recipes and judges raise; the log then has everything that was finished."""
        return self._for_size() if self._goal.bits is not None else self._for_loss()

    def elapsed(self) -> float:
        """Seconds of all searches with this log."""
        return self._before + self._clock() - self._started

    # --- a size

    def _for_size(self) -> Outcome:
        assert self._goal.bits is not None
        size = self._goal.bits * self._planner.weights
        plan = self._planner.plan(size=size)
        reason = "the best plan in this size"
        mode: Mode = "single"
        try:
            if self._sequential:
                mode = self._better_mode(plan, self._measure(plan, "single", "probe", must=True))
            entry = self._measure(plan, mode, "full", must=True)
        except OutOfTimeError:
            reason = "the time was used up"
            entry = self._measure(plan, "single", "full", must=True)
            mode = "single"
        if plan.size > size:
            reason = "the smallest model there is takes more"
        return Outcome(plan, mode, entry, plan.size <= size, None, reason)

    # --- a loss

    def _for_loss(self) -> Outcome:
        assert self._goal.max_loss is not None
        target = math.log1p(self._goal.max_loss)
        try:
            factor, margin = self._probe(target)
            reason = self._confirm(target, factor, margin)
        except OutOfTimeError:
            reason = "the time was used up"
        if not self._full:
            self._measure(self._planner.plan(loss=self._first_aim), "single", "full", must=True)
        return self._outcome(reason)

    def _probe(self, target: float) -> tuple[float, float]:
        """The factor from predicted to measured nats, and the width of the interval that the final measurement will
        have."""
        factor, margin = 1.0, 0.0
        plan: Plan | None = None
        entry: dict[str, Any] = {}
        for _ in range(PROBES):
            self._first_aim = self._aim(target - margin, factor, plan)
            following = self._planner.plan(loss=self._first_aim)
            if plan is not None and abs(following.size / plan.size - 1) < NEAR:
                break
            plan = following
            entry = self._measure(plan, "single", "probe", must=not entry)
            factor, margin = self._factor(plan, entry), self._margin(entry)
            self._first_aim = self._aim(target - margin, factor, plan)
        return factor, margin

    def _better_mode(self, plan: Plan, single: Mapping[str, Any]) -> Mode:
        """Both ways on the same plan."""
        sequential = self._measure(plan, "sequential", "probe")
        return "sequential" if _loss(sequential) < _loss(single) else "single"

    def _confirm(self, target: float, factor: float, margin: float) -> str:
        mode: Mode = "sequential" if self._sequential else "single"
        single_factor = factor
        passing: Plan | None = None
        failing: Plan | None = None
        last: Plan | None = None
        for _ in range(FINALS):
            plan = self._next(target - margin, factor, last, passing, failing)
            if plan is None or plan in (passing, failing):
                break
            entry = self._measure(plan, mode, "full")
            if self._holds(entry):
                passing = plan
            else:
                failing = plan
            last, margin = plan, self._margin(entry)
            if mode == "sequential" and self._probe_factor(plan, entry) > single_factor:
                mode, factor, failing = "single", single_factor, None
                continue
            factor = self._factor(plan, entry)
        else:
            return f"{FINALS} trials were confirmed"
        if passing is None:
            return "no model holds the bound: the one with the least predicted loss was tried"
        if failing is None:
            return "there is no smaller model"
        return "the next smaller trial fails"

    def _next(
        self, target: float, factor: float, last: Plan | None, passing: Plan | None, failing: Plan | None
    ) -> Plan | None:
        """The plan where the loss is expected to reach the target, but between the trials that passed and failed."""
        if passing is not None and failing is not None and failing.size >= passing.size / (1 + 1.5 * STEP):
            return None
        plan: Plan | None = self._planner.plan(loss=self._aim(target, factor, last))
        assert plan is not None
        most = math.inf if passing is None else passing.size / (1 + STEP)
        least = 0.0 if failing is None else failing.size * (1 + STEP)
        if least > most:
            return None
        if plan.size > most:
            plan = self._planner.plan(size=most)
        elif failing is not None and plan.size < least:
            plan = self._larger(failing, most)
        if plan is None or (failing and plan.size <= failing.size) or (passing and plan.size >= passing.size):
            return None
        return plan

    def _larger(self, failing: Plan, most: float) -> Plan | None:
        """The next plan that is larger than one that failed; steps may be as large as the largest matrix makes them."""
        for step in STEPS:
            size = failing.size * (1 + step)
            if size > most:
                return None
            plan = self._planner.plan(size=size)
            if plan.size > failing.size:
                return plan
        return None

    def _aim(self, target: float, factor: float, last: Plan | None) -> float:
        """The predicted loss to plan for; not too far from the last one, whose factor may not hold there."""
        aim = max(target, 0.1 * math.log1p(self._goal.max_loss or 0.0)) / factor
        if last is None or last.loss <= 0:
            return aim
        return min(max(aim, last.loss / MOST_STEPS), last.loss * MOST_STEPS)

    # --- measuring

    def _factor(self, plan: Plan, entry: Mapping[str, Any]) -> float:
        if plan.loss <= 0:
            return 1.0
        return max(math.log1p(max(_loss(entry), -0.9)) / plan.loss, LEAST_FACTOR)

    def _probe_factor(self, plan: Plan, entry: Mapping[str, Any]) -> float:
        """The factor as a probe of the same trial gives it."""
        measured = entry["measured"]
        probe = measured.get("probe")
        known = measured["loss"] if probe is None else probe
        return self._factor(plan, {"measured": {"loss": known}})

    def _margin(self, entry: Mapping[str, Any]) -> float:
        """The distance of the bound from the estimate, in nats, with as many tokens as the last word has."""
        measured = entry["measured"]
        width = math.log1p(max(measured["upper"], -0.9)) - math.log1p(max(measured["loss"], -0.9))
        if not math.isfinite(width):
            return 0.0
        return width * math.sqrt(min(1.0, measured["count"] / max(entry["full_count"], 1)))

    def _holds(self, entry: Mapping[str, Any]) -> bool:
        assert self._goal.max_loss is not None
        return bool(entry["measured"]["upper"] <= self._goal.max_loss)

    def _measure(self, plan: Plan, mode: Mode, stage: Stage, *, must: bool = False) -> dict[str, Any]:
        """The log's entry of a trial, which is measured where there is none.

        Raises:
            OutOfTimeError: there is no time for it, unless it must be.
        """
        stage = stage if stage in self._judge.stages else "full"
        key = f"{plan.key}-{mode}-{stage}"
        entry = self._log.find("trial", key)
        if entry is None:
            if not must:
                self._check_time(key, mode, stage)
            entry = self._measure_now(key, plan, mode, stage)
        if stage == "full" and not any(known[2]["key"] == key for known in self._full):
            self._full.append((plan, mode, entry))
        return entry

    def _measure_now(self, key: str, plan: Plan, mode: Mode, stage: Stage) -> dict[str, Any]:
        began = self._clock()
        measured = self._judge.measure(self._make_trial(plan, mode), stage)
        return self._log.add(
            "trial",
            key,
            mode=mode,
            stage=stage,
            bits=plan.bits_per_weight,
            bytes_per_token=plan.bytes_per_token,
            predicted=plan.loss,
            measured=asdict(measured),
            full_count=getattr(self._judge, "full_count", measured.count),
            seconds=self._clock() - began,
            elapsed=self.elapsed(),
        )

    def _check_time(self, key: str, mode: Mode, stage: Stage) -> None:
        """Raises OutOfTimeError; what the clock decides is logged, and repeated by a search that takes up the log."""
        if self._budget is None:
            return
        point = f"{self._goal.key}/{key}/{self._budget!r}"
        if self._log.find("stop", point):
            raise OutOfTimeError
        alike = [
            entry["seconds"] for entry in self._log.all("trial") if (entry["mode"], entry["stage"]) == (mode, stage)
        ]
        if self.elapsed() - self._goal_began + max(alike, default=0.0) > self._budget:
            self._log.add("stop", point, elapsed=self.elapsed())
            raise OutOfTimeError

    def _outcome(self, reason: str) -> Outcome:
        """The smallest trial that holds the bound; where none does, the one that loses least."""
        held = [each for each in self._full if self._holds(each[2])]
        if not held:
            plan, mode, entry = min(self._full, key=lambda each: (each[2]["measured"]["upper"], each[0].size))
            return Outcome(plan, mode, entry, False, None, reason)
        plan, mode, entry = min(held, key=lambda each: (each[0].size, each[2]["measured"]["upper"]))
        failed = [each for each in self._full if each[0].size < plan.size and not self._holds(each[2])]
        smaller = max(failed, key=lambda each: each[0].size)[2] if failed else None
        return Outcome(plan, mode, entry, True, smaller, reason)


def _loss(entry: Mapping[str, Any]) -> float:
    return float(entry["measured"]["loss"])
