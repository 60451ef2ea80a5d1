"""Rounding that is told which way to go where a value lies in the middle of two steps."""

from contextlib import contextmanager

import torch

# How far two computations of an activation in f32 may differ, as a part of the largest in its row: sixteen roundings.
ERROR = 2.0**-20
MOST_TURNS = 3  # values of one row and layer that are rounded the other way


class Rounding:
    """Rounds steps to nearest, and notes those that two computations of the activations may round to different sides.

    A value is known by its row and its size: entries of a table come in pairs of opposite sign, q, k and v share one
    preparation, and so do the experts of a token.
    """

    def __init__(self):
        self.rows = None  # numbers of the rows that are rounded next; None is 0, 1, 2, ...
        self.turned = frozenset()  # (row, size) of what is rounded to the other side
        self.near = {}  # (row, size) of what may be -> its distance from the middle, where 1 is `ERROR`

    @contextmanager
    def turning(self, turned):
        """What is rounded within notes its near values, and rounds `turned` to the other side."""
        self.turned, self.near = frozenset(turned), {}
        try:
            yield
        finally:
            self.turned = frozenset()

    def of(self, x):
        """The argument `rounded` of `quant.emulation.emulated` for the activations `[rows, columns]`."""
        rows = torch.arange(len(x)) if self.rows is None else self.rows
        errors = ERROR * x.abs().amax(1)

        def rounded(steps, reach):
            size, nearest = steps.abs(), steps.round()
            reached = reach * errors.reshape(-1, *[1] * (steps.dim() - 1))
            distance = (size - size.floor() - 0.5).abs() / reached
            places = (distance < 1).nonzero(as_tuple=True)
            values = zip(rows[places[0]].tolist(), size[places].tolist(), strict=True)
            for value, far, *place in zip(values, distance[places].tolist(), *places, strict=True):
                self.near[value] = far
                if value in self.turned:
                    nearest[tuple(place)] += torch.sign(steps[tuple(place)] - nearest[tuple(place)])
            return nearest

        return rounded


def turn_until_same(compare):
    """The values that must be rounded to the other side for two computations to agree in every row.

    Args:
        compare: a set of `(row, size)` to turn -> the rows that differ then, and `Rounding.near`. A row depends on
            itself and those before it.

    Raises:
        AssertionError: a row differs, whichever of its values are turned.
    """
    turned = frozenset()
    rows, near = compare(turned)
    while len(rows):
        row = rows[0]
        turned = _turns_of_row(compare, row, turned, near)
        assert turned is not None, f"row {row} differs, and no rounding explains it"
        rows, near = compare(turned)
        assert row not in rows
    return turned


def _turns_of_row(compare, row, turned, near):
    """`turned` and as few values of the row as it takes, the nearest to the middle first; None where none will do."""
    ways = [(turned, near)]
    for _ in range(MOST_TURNS):
        further = []
        for before, seen in ways:
            for value in sorted((each for each in seen if each[0] == row and each not in before), key=seen.get):
                after = before | {value}
                rows, changed = compare(after)
                if row not in rows:
                    return after
                further.append((after, changed))
        ways = further
    return None
