"""What passes cost, as running estimates: nothing is assumed that can be measured."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise

GAIN = 0.2  # of the newest measurement
SLOW_GAIN = 0.1  # the same of what a round measures several times
FIRST_SLOPE = 0.05  # of a pass for one row: what a further row is taken to cost before any pass has shown it
OUTLIER = 2.0  # a pass that took so many times longer than expected says no more than this
JUMP = 1.7  # so many times longer or shorter is another machine, so to speak: others have come or gone
EARLY = 3  # measurements that are averaged before the newest ones count more
WORTH = 2  # measurements that what lies between others is worth, before it is measured itself


class Running:
    """A mean in which the newest values count most, and single outliers little."""

    def __init__(self, value: float = 0.0, count: int = 0, gain: float = GAIN) -> None:
        self.value, self.count, self._gain = value, count, gain

    def add(self, value: float) -> None:
        """The next measurement."""
        if self.count >= EARLY and self.value > 0:
            value = min(value, OUTLIER * self.value)
        self.count += 1
        self.value += max(self._gain, 1.0 / self.count) * (value - self.value)


class PassCosts:
    """Seconds of the target's passes by their rows.

    A pass of n rows is known as a multiple of a pass of one row, which longer texts make slower alike. Between and
    behind the numbers of rows that were measured it is interpolated, and more rows never cost less.

    Args:
        most_rows: of a pass.
    """

    def __init__(self, most_rows: int) -> None:
        self.most_rows = most_rows
        self.one = Running()
        self.token = Running()  # choosing a token and delivering it, beside the pass
        self._relative: dict[Hashable, Running] = {}  # to a pass of one row; passes of more rows by their number
        self._counted: set[int] = set()  # rows of passes
        self._recent: set[Hashable] = set()  # of what was measured since the last pass of one row
        self._strange: float | None = None  # the last pass of one row, if there was none like it
        self._curve = [1.0] * (most_rows + 1)
        self._update()

    @property
    def known(self) -> bool:
        """Whether a pass of one row has been measured."""
        return self.one.count > 0

    def plain(self) -> float:
        """Seconds of one token without any draft."""
        return self.one.value + self.token.value

    def add(self, rows: int, seconds: float) -> None:
        """A pass took so long."""
        if rows == 1:
            self._add_one(seconds)
        elif self.known:
            if rows not in self._relative and self._counted:
                self._relative[rows] = Running(self._curve[rows], WORTH)
            self._counted.add(rows)
            self.add_relative(rows, seconds)
            self._update()

    @property
    def in_doubt(self) -> bool:
        """Whether the last pass of one row was so far from the others that another one should say which is true."""
        return self._strange is not None

    def _add_one(self, seconds: float) -> None:
        usual, strange = self.one.value or seconds, self._strange
        is_strange = not 1.0 / JUMP < seconds / usual < JUMP
        if is_strange and strange is None:
            self._strange = seconds
            return
        self._strange = None
        if is_strange and strange is not None and (strange > usual) == (seconds > usual):
            seconds = min(strange, seconds) if seconds > usual else max(strange, seconds)
            self._blame_all(seconds / usual)
            self.one.value = seconds
        self.one.add(seconds)
        self._recent.clear()

    def add_relative(self, what: Hashable, seconds: float) -> None:
        """Something else took so long, which a slower machine makes slower as it does a pass; there was one of one
        row."""
        self._relative.setdefault(what, Running(gain=SLOW_GAIN)).add(seconds / self.one.value)
        self._recent.add(what)

    def relative(self, what: Hashable) -> float | None:
        """Seconds of that; None before the first time."""
        known = self._relative.get(what)
        return self.one.value * known.value if known is not None else None

    def of(self, rows: int) -> float:
        """Seconds of a pass with so many rows."""
        return self.one.value * self._curve[rows]

    @property
    def reach(self) -> int:
        """Rows of a pass that it is not rash to try: up to twice as many as were measured."""
        return min(2 * max(self._counted, default=2), self.most_rows)

    @property
    def slope(self) -> float:
        """Seconds of a further row where it costs least, on the way from one row."""
        return self.one.value * self._slope

    def _blame_all(self, factor: float) -> None:
        """Passes of one row take so many times longer now: what was measured since the last did so for that reason."""
        for what in self._recent:
            least = 1.0 if what in self._counted else 0.0
            self._relative[what].value = max(self._relative[what].value / factor, least)
        self._update()

    def _update(self) -> None:
        ratios = ((rows, self._relative[rows]) for rows in sorted(self._counted))
        points = monotone([(1, 1.0, 1e9), *((rows, each.value, float(each.count)) for rows, each in ratios)])
        last, value = points[-1]
        slope = (value - 1.0) / (last - 1) if last > 1 else FIRST_SLOPE
        points.append((max(self.most_rows, last) + 1, value + slope * (max(self.most_rows, last) + 1 - last)))
        for (begin, low), (end, high) in pairwise(points):
            for rows in range(begin, min(end, self.most_rows) + 1):
                self._curve[rows] = low + (high - low) * (rows - begin) / (end - begin)
        self._slope = min(((self._curve[n] - 1.0) / (n - 1) for n in range(2, self.most_rows + 1)), default=FIRST_SLOPE)


def monotone(points: list[tuple[int, float, float]]) -> list[tuple[int, float]]:
    """The nearest values that never fall (pool adjacent violators), none below the first.

    Args:
        points: place, value and weight, by ascending place.
    """
    pools: list[tuple[list[int], float, float]] = []
    for place, value, weight in points:
        pools.append(([place], value, weight))
        while len(pools) > 1 and pools[-2][1] > pools[-1][1]:
            (left, low, one), (right, high, other) = pools[-2], pools[-1]
            pools[-2:] = [(left + right, (low * one + high * other) / (one + other), one + other)]
    return [(place, value) for places, value, _ in pools for place in places]


class DraftCosts:
    """Seconds of a draft's passes.

    Args:
        passes: of the target: before the first measurement a step is taken to cost half of one.
    """

    def __init__(self, passes: PassCosts) -> None:
        self._passes = passes

    def step(self, kind: str) -> float:
        """Of one step of the draft."""
        known = self._passes.relative(("step", kind))
        return known if known is not None else 0.5 * self._passes.one.value

    def add_step(self, kind: str, seconds: float) -> None:
        """A step took so long."""
        if self._passes.known:
            self._passes.add_relative(("step", kind), seconds)

    def behind(self, kind: str, rows: int) -> float:
        """Of evaluating so many tokens that the draft has not seen."""
        known = self._passes.relative(("behind", kind))
        return rows * (known if known is not None else 0.2 * self.step(kind))

    def add_behind(self, kind: str, rows: int, seconds: float) -> None:
        """They took so long."""
        if rows and self._passes.known:
            self._passes.add_relative(("behind", kind), seconds / rows)
