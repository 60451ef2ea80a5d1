"""How many bits each matrix gets: the least total loss in a size, or the least size with a loss.

Every matrix has a few options, each with a size and a loss, and losses add up. On the lower convex hull of its options
a matrix goes from one to the next by steps of falling gain (loss saved per bit); taking the steps of all matrices in
the order of their gain visits the solutions that are optimal for some price of a bit (Everett 1963). What lies between
two of these is filled by the steps that still fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


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


def lower_hull(points: Sequence[Point]) -> list[int]:
    """Indices of the options on the lower convex hull, from the smallest to the one with the least loss.

    Raises:
        ValueError: there is no option, or a loss is no finite number.
    """
    if not points or not all(math.isfinite(point.loss) for point in points):
        raise ValueError(f"[lower_hull] expected options with finite losses, found {list(points)}")
    hull: list[int] = []
    for index in sorted(range(len(points)), key=lambda each: (points[each].size, points[each].loss, each)):
        point = points[index]
        if hull and point.loss >= points[hull[-1]].loss:
            continue
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

    Exact where the size is one that the hulls reach together; else at most one step of one matrix from the optimum.
    The smallest options are the answer where even these are larger.

    Raises:
        ValueError: a curve has no options.
    """
    hulls = [lower_hull(curve) for curve in curves]
    places = [0] * len(curves)
    left = size - sum(curve[hull[0]].size for curve, hull in zip(curves, hulls, strict=True))
    for step in _steps(curves, hulls):
        if step.size <= left and places[step.curve] == step.place:
            places[step.curve] += 1
            left -= step.size
    return [hull[place] for hull, place in zip(hulls, places, strict=True)]


def fit_loss(curves: Sequence[Sequence[Point]], loss: float) -> list[int]:
    """The index of an option of every curve, with the least size at a total loss of at most `loss`.

    As exact as `fit_size`. The options of the least loss are the answer where even these lose more.

    Raises:
        ValueError: a curve has no options.
    """
    hulls = [lower_hull(curve) for curve in curves]
    places = [len(hull) - 1 for hull in hulls]
    spare = loss - math.fsum(curve[hull[-1]].loss for curve, hull in zip(curves, hulls, strict=True))
    for step in reversed(_steps(curves, hulls)):
        if step.loss <= spare and places[step.curve] == step.place + 1:
            places[step.curve] -= 1
            spare -= step.loss
    return [hull[place] for hull, place in zip(hulls, places, strict=True)]


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
