"""From a size or a loss to a spec for every matrix, with codes made only for what is about to be chosen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from tmac.quant.allocation import Point, fit_loss, fit_size
from tmac.quant.codes_cache import digest
from tmac.quant.matrix import Matrix, bits_per_weight, bytes_per_token
from tmac.quant.options import Option
from tmac.spec import QuantSpec

ROUNDS = 4


class CodesMaker(Protocol):
    """Makes the codes of matrices, and keeps them."""

    @property
    def matrices(self) -> Sequence[Matrix]:
        """Of the model, in its order."""

    def screen(self) -> Sequence[Sequence[Option]]:
        """For every matrix the options that are worth a closer look, with rough losses, from the smallest."""

    def make(self, wanted: Sequence[tuple[Matrix, QuantSpec]]) -> Sequence[float]:
        """Makes codes with the recipe, where they are not there yet; gives the loss that each is predicted to cost."""


@dataclass(frozen=True)
class Plan:
    """A spec for every matrix.

    Args:
        matrices: of the model.
        options: what was chosen for each.
    """

    matrices: tuple[Matrix, ...]
    options: tuple[Option, ...]

    @cached_property
    def key(self) -> str:
        """A hash of what was chosen."""
        return digest([[matrix.name, option.spec.to_dict()] for matrix, option in zip_plan(self)])[:16]

    @property
    def specs(self) -> dict[str, QuantSpec]:
        """The specs by the names of the matrices."""
        return {matrix.name: option.spec for matrix, option in zip_plan(self)}

    @property
    def size(self) -> int:
        """Bits of all matrices."""
        return sum(option.size for option in self.options)

    @property
    def loss(self) -> float:
        """Nats per token that it is predicted to cost, before any correction by measurements."""
        return math.fsum(option.loss for option in self.options)

    @property
    def bits_per_weight(self) -> float:
        """Over all matrices, one that is shared counted once."""
        return bits_per_weight(self.matrices, [option.size for option in self.options])

    @property
    def bytes_per_token(self) -> int:
        """What a generated token reads of the matrices."""
        return bytes_per_token(self.matrices, [option.size for option in self.options])


def zip_plan(plan: Plan) -> list[tuple[Matrix, Option]]:
    """The matrices with what was chosen for them."""
    return list(zip(plan.matrices, plan.options, strict=True))


class Planner:
    """Chooses among the options of all matrices.

    Losses of options start from those of a screening. Before an option is chosen its codes are made and its loss is
    replaced; that of its neighbours, not looked at yet, changes by the same factor.

    Args:
        maker: of the codes.
    """

    def __init__(self, maker: CodesMaker) -> None:
        self._maker = maker
        self._screened = [list(options) for options in maker.screen()]
        self._exact: list[dict[int, float]] = [{} for _ in self._screened]

    @property
    def weights(self) -> int:
        """Of all matrices."""
        return sum(matrix.weights for matrix in self._maker.matrices)

    @property
    def smallest(self) -> int:
        """Bits of the smallest plan."""
        return sum(options[0].size for options in self._screened)

    def plan(self, *, size: float | None = None, loss: float | None = None) -> Plan:
        """The plan with the least loss in `size` bits, or the smallest with the predicted `loss` in nats per token.

        Where there is none, the smallest, or the one with the least loss.
        """
        for _ in range(ROUNDS):
            chosen = self._choose(size, loss)
            missing = [(number, place) for number, place in enumerate(chosen) if place not in self._exact[number]]
            if not missing:
                break
            self._make(missing)
        else:
            chosen = self._choose_known(size, loss)
        curves = self._curves()
        return Plan(
            tuple(self._maker.matrices),
            tuple(curve[place] for curve, place in zip(curves, chosen, strict=True)),
        )

    def _choose_known(self, size: float | None, loss: float | None) -> list[int]:
        """A choice among options whose codes are made."""
        known = [sorted(exact) for exact in self._exact]
        curves = self._curves()
        points = [[curve[place].point for place in places] for curve, places in zip(curves, known, strict=True)]
        return [places[at] for places, at in zip(known, _fit(points, size, loss), strict=True)]

    def _choose(self, size: float | None, loss: float | None) -> list[int]:
        return _fit([[option.point for option in curve] for curve in self._curves()], size, loss)

    def _make(self, missing: Sequence[tuple[int, int]]) -> None:
        if not missing:
            return
        wanted = [(self._maker.matrices[number], self._screened[number][place].spec) for number, place in missing]
        for (number, place), loss in zip(missing, self._maker.make(wanted), strict=True):
            self._exact[number][place] = loss

    def _curves(self) -> list[list[Option]]:
        """The options with the best losses that are known."""
        found = []
        for options, exact in zip(self._screened, self._exact, strict=True):
            curve = []
            for place, option in enumerate(options):
                near = min(exact, key=lambda other: (abs(other - place), other), default=None)
                factor = 1.0 if near is None or options[near].loss <= 0 else exact[near] / options[near].loss
                curve.append(replace(option, loss=exact.get(place, option.loss * factor)))
            found.append(curve)
        return found


def _fit(points: Sequence[Sequence[Point]], size: float | None, loss: float | None) -> list[int]:
    if size is not None:
        return fit_size(points, math.floor(size))
    assert loss is not None
    return fit_loss(points, loss)
