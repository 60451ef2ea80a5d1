"""How many bits each matrix gets: the least total loss in a size, or the least size with a loss.

Every matrix has a few options, each with a size and a loss, and losses add up. On the lower convex hull of its options
a matrix goes from one to the next by steps of falling gain (loss saved per bit); taking the steps of all matrices in
the order of their gain visits the solutions that are optimal for some price of a bit (Everett 1963). What lies between
two of these is filled by the steps that still fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

LARGE = 2  # matrices whose options are all tried: embedding and head


@dataclass(frozen=True)
class Point:
    """What an option costs: `size` in bits, `loss` in any unit that adds up."""

    size: int
    loss: float


@dataclass(frozen=True)
class _Step:
    """Curve `curve` goes from its hull's point `place` to the next one."""

    curve: int
    place: int
    size: int
    loss: float

    @property
    def gain(self) -> float:
        return self.loss / self.size


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Indices of the options that no other one beats in size and loss, from the smallest.

    Raises:
        ValueError: there is no option, or a loss is no finite number.
    """
    if not points or not all(math.isfinite(point.loss) for point in points):
        raise ValueError(f"[allocation] expected options with finite losses, found {list(points)}")
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda each: (points[each].size, points[each].loss, each)):
        if not front or points[index].loss < points[front[-1]].loss:
            front.append(index)
    return front


def lower_hull(points: Sequence[Point]) -> list[int]:
    """Indices of the options on the lower convex hull, from the smallest to the one with the least loss.

    Raises:
        ValueError: there is no option, or a loss is no finite number.
    """
    hull: list[int] = []
    for index in pareto_front(points):
        point = points[index]
        while len(hull) > 1 and _above(points[hull[-2]], points[hull[-1]], point):
            hull.pop()
        hull.append(index)
    return hull


def _above(first: Point, middle: Point, last: Point) -> bool:
    """Whether `middle` is on or above the line between the others."""
    saved, spent = first.loss - middle.loss, middle.size - first.size
    return saved * (last.size - first.size) <= (first.loss - last.loss) * spent


def fit_size(curves: Sequence[Sequence[Point]], size: int) -> list[int]:
    """The index of an option of every curve, with the least loss in at most `size` bits.

    Exact where the size is one that the hulls reach together; else at most one step of one matrix from the optimum. Of
    the few matrices that have a large part of all weights every option is tried, on the hull or not: one step of theirs
    may be larger than all that the others can do. The smallest options are the answer where even these are larger.

    Raises:
        ValueError: a curve has no options.
    """
    return _best(curves, lambda walk, fixed: walk.fit_size(size - fixed.size), lambda point: point.size <= size)


def fit_loss(curves: Sequence[Sequence[Point]], loss: float) -> list[int]:
    """The index of an option of every curve, with the least size at a total loss of at most `loss`.

    As exact as `fit_size`. The options of the least loss are the answer where even these lose more.

    Raises:
        ValueError: a curve has no options.
    """
    found = _best(
        curves,
        lambda walk, fixed: walk.fit_loss(loss - fixed.loss),
        lambda point: point.loss <= loss,
        lambda point: (point.size, point.loss),
    )
    return found if total(curves, found).loss <= loss else [hull[-1] for hull in map(lower_hull, curves)]


def _best(
    curves: Sequence[Sequence[Point]],
    fit: Callable[[_Walk, Point], list[int]],
    allowed: Callable[[Point], bool],
    worth: Callable[[Point], tuple[float, float]] = lambda point: (point.loss, point.size),
) -> list[int]:
    """The best of what the other matrices find for every option of the large ones; the smallest where none is allowed.

    Args:
        curves: of all matrices.
        fit: what the others find beside a choice of the large ones that costs `fixed`.
        allowed: whether a total will do.
        worth: of a total, the smaller the better.
    """
    large = _large(curves)
    walk = _Walk([curve for index, curve in enumerate(curves) if index not in large])
    best: tuple[tuple[float, float], list[int]] | None = None
    for places in product(*(reversed(range(len(curves[index]))) for index in large)):
        fixed = total([curves[index] for index in large], places)
        rest = iter(fit(walk, fixed))
        chosen = [places[large.index(index)] if index in large else next(rest) for index in range(len(curves))]
        point = total(curves, chosen)
        if allowed(point) and (best is None or worth(point) < best[0]):
            best = worth(point), chosen
    return best[1] if best is not None else [hull[0] for hull in map(lower_hull, curves)]


def _large(curves: Sequence[Sequence[Point]]) -> list[int]:
    """At most two matrices with a sixteenth of all bits or more, where there are others."""
    sizes = [max((point.size for point in curve), default=0) for curve in curves]
    order = sorted(range(len(curves)), key=lambda index: (-sizes[index], index))
    return sorted(index for index in order[:LARGE] if 16 * sizes[index] >= sum(sizes))


class _Walk:
    """Hulls of matrices, and the steps on them."""

    def __init__(self, curves: Sequence[Sequence[Point]]) -> None:
        self._curves = curves
        self._hulls = [lower_hull(curve) for curve in curves]
        self._steps = _steps(curves, self._hulls)
        self._size = sum(curve[hull[0]].size for curve, hull in zip(curves, self._hulls, strict=True))
        self._loss = math.fsum(curve[hull[-1]].loss for curve, hull in zip(curves, self._hulls, strict=True))

    def fit_size(self, size: int) -> list[int]:
        """The least loss in a size."""
        places = [0] * len(self._hulls)
        left = size - self._size
        for step in self._steps:
            if step.size <= left and places[step.curve] == step.place:
                places[step.curve] += 1
                left -= step.size
        return self._options(places)

    def fit_loss(self, loss: float) -> list[int]:
        """The least size at a loss."""
        places = [len(hull) - 1 for hull in self._hulls]
        spare = loss - self._loss
        for step in reversed(self._steps):
            if step.loss <= spare and places[step.curve] == step.place + 1:
                places[step.curve] -= 1
                spare -= step.loss
        return self._options(places)

    def _options(self, places: Sequence[int]) -> list[int]:
        return [hull[place] for hull, place in zip(self._hulls, places, strict=True)]


def total(curves: Sequence[Sequence[Point]], chosen: Sequence[int]) -> Point:
    """Size and loss of one option of every curve."""
    points = [curve[index] for curve, index in zip(curves, chosen, strict=True)]
    return Point(sum(point.size for point in points), math.fsum(point.loss for point in points))


def _steps(curves: Sequence[Sequence[Point]], hulls: Sequence[Sequence[int]]) -> list[_Step]:
    """All steps, the largest gain first; those of one curve are in their order, because its hull is convex."""
    steps = []
    for number, (curve, hull) in enumerate(zip(curves, hulls, strict=True)):
        for place, (here, there) in enumerate(pairwise(hull)):
            size, loss = curve[there].size - curve[here].size, curve[here].loss - curve[there].loss
            steps.append(_Step(number, place, size, loss))
    return sorted(steps, key=lambda step: (-step.gain, step.curve, step.place))
