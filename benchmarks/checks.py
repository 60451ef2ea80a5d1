"""What a kernel's answer has to pass before it is timed."""

from __future__ import annotations

import numpy as np

from benchmarks.tables import averages
from benchmarks.weights import Bytes, Error, Floats, Weights, with_outliers
from tmac import _core

# NMSE that Gaussian activations may have. A step of the tables (or of int8) is 1/127 of the largest of 128 values,
# nearly 3 times their root mean square; uniform rounding leaves step / sqrt(12), squared 4e-5. A token's largest of
# thousands of values is larger.
LARGEST_NMSE = {"group": 1e-4, "token": 2e-4, "float": 1e-10}
# Two looked-up planes of a ternary weight lose as much as two planes of any codes, on a weight whose square is 1.9
# times smaller. No shipped choice looks ternary weights up where there are dot products.
LARGEST_LUT_TERNARY_NMSE = 1.3e-4
# A rounding average adds 0 or 1/2 step, a variance of 1/16. It counts as often as there are leaves below it: over a
# tree of L leaves that is (L^2 / 8 - L / 8) / L = (L - 1) / 8 per look-up, 7/8 for the 8 leaves of 128 columns, beside
# the look-up's own 1/12.
LARGEST_NMSE_OF_AVERAGES = LARGEST_LUT_TERNARY_NMSE * (1 / 12 + 7 / 8) * 12
TWIN_TOKENS = 4


def largest_nmse(row: _core.KernelRow, activation: str) -> float:
    """The NMSE up to which rounding explains a kernel's error on Gaussian activations."""
    if averages(row):
        return LARGEST_NMSE_OF_AVERAGES
    if row["method"] == "lut" and row["codebook"] == "ternary":
        return LARGEST_LUT_TERNARY_NMSE
    return LARGEST_NMSE[activation]


def scalar_twin(row: _core.KernelRow, activation: str) -> str:
    """The scalar kernel whose bits the kernel must give."""
    for other in _core.kernels():
        same = all(other[key] == row[key] for key in ("method", "bits", "codebook"))
        if other["isa"] == "scalar" and same and activation in other["activations"]:
            return other["name"]
    raise LookupError(f"no scalar kernel for {row['name']}")


class Checked:
    """Answers of one packed weight against the float64 product and against the scalar kernel of the class."""

    def __init__(self, row: _core.KernelRow, activation: str, weights: Weights) -> None:
        self.name, self.activation, self.weights = row["name"], activation, weights
        self.largest_nmse = largest_nmse(row, activation)
        self.twin = scalar_twin(row, activation)
        self.twin_buffer: Bytes | None = None if self.twin == self.name else weights.pack(self.twin).buffer()

    def errors(self, x: Floats) -> tuple[Error, Error]:
        """(Gaussian, with outliers); fails where rounding does not explain the error or a bit is not the twin's."""
        results = []
        for values in (x, with_outliers(x)):
            got = _core.linear(values, self.weights.buffers[0], None, 0)
            results.append((got, Error.of(got, values.astype(np.float64) @ self.weights.exact)))
        got, error = results[0]
        if not error.nmse <= self.largest_nmse:
            raise SystemExit(f"{self.name}: NMSE {error.nmse:.3g} is no rounding: not timed")
        if self.twin_buffer is not None:
            # A token's result does not depend on its neighbours, so that a few of many tokens suffice; the last is one.
            tokens = np.unique(np.linspace(0, len(x) - 1, TWIN_TOKENS).astype(int))
            want = _core.linear(np.ascontiguousarray(x[tokens]), self.twin_buffer, None, 0)
            if not np.array_equal(got[tokens], want):
                raise SystemExit(f"{self.name}: the bits are not those of {self.twin}: not timed")
        return error, results[1][1]
