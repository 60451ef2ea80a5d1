"""Codes of the layers of a model in memory by a recipe that looks at calibration text."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tmac.codes import Codes
from tmac.quant.blocks import BlockSource
from tmac.quant.gather import gather
from tmac.quant.methods import RECIPES
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

# Gives the blocks of a model; `tmac.hf` adds the one for models of transformers.
openers: list[Callable[[nn.Module], BlockSource]] = []


class CalibratedRounding:
    """Makes the codes of layers by their names.

    Args:
        method: a name in `tmac.quant.methods.RECIPES`.
        statistics: of the layers that calibration text has reached; None: there is no text.
    """

    def __init__(self, method: str, statistics: Mapping[str, LayerStatistics] | None) -> None:
        self._recipe, self._statistics = RECIPES[method], statistics

    def codes(self, names: Sequence[str], weight: Tensor, spec: QuantSpec) -> Codes:
        """Codes of a weight `[out_features, in_features]` of the layer of these names; a layer that no text has reached
        is rounded to nearest.

        Raises:
            ValueError: the recipe refuses the weight.
        """
        weight = weight.detach().to("cpu", torch.float32).contiguous()
        if self._statistics is None:
            return self._recipe(weight, spec, None)
        known = next((self._statistics[name] for name in names if name in self._statistics), None)
        if known is None or not bool((known.importance > 0).any()):
            return RECIPES["rtn"](weight, spec, None)
        return self._recipe(weight, spec, known)


@contextmanager
def calibrated_rounding(
    model: nn.Module, method: str, calibration: Any, progress: bool | None
) -> Iterator[CalibratedRounding | None]:
    """The rounding that `quantize_` is asked for; None where that is to nearest without text.

    Args:
        model: a causal language model of transformers, where there is calibration text.
        method: a name in `tmac.quant.methods.RECIPES`.
        calibration: token ids, int64 `[tokens]` or `[windows, tokens]`, or None.
        progress: as everywhere.

    Raises:
        ValueError: there is no such method, it needs calibration text, there is too little, or the blocks of the model
            are not known.
    """
    if method not in RECIPES:
        raise ValueError(f"[quantize_] method must be one of {', '.join(RECIPES)}, found {method!r}")
    if calibration is None:
        if method in ("gptq", "awq"):
            raise ValueError(f"[quantize_] method={method!r} needs calibration, token ids")
        yield None if method == "rtn" else CalibratedRounding(method, None)
        return
    if not openers:
        raise ValueError("[quantize_] calibration is for models of transformers: import tmac.hf.quantizer")
    with tempfile.TemporaryDirectory(prefix="tmac-statistics-") as folder:
        source = openers[-1](model)
        ids = torch.as_tensor(calibration)
        yield CalibratedRounding(method, gather(source, ids, cache=folder, progress=progress))
