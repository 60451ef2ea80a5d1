"""Memory between two pages that may not be touched: one byte too far ends the process with SIGSEGV."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac import _core

from . import cases

PAGE = mmap.PAGESIZE


class Guarded:
    """An array whose last byte (`at_end`) or first byte stands at the edge of a guard page.

    Args:
        values: what to copy there.
        at_end: an access past the end faults; otherwise an access before the start does.
    """

    def __init__(self, values: NDArray[Any], at_end: bool) -> None:
        pages = -(-values.nbytes // PAGE)
        self.memory = mmap.mmap(-1, (pages + 2) * PAGE)
        first = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.address = first + PAGE + (pages * PAGE - values.nbytes if at_end else 0)
        self.array = np.frombuffer(self.memory, values.dtype, values.size, self.address - first).reshape(values.shape)
        self.array[...] = values
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (first, first + (pages + 1) * PAGE):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(PAGE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")


def read_past(at_end: bool) -> None:
    """What the test must catch: one byte too far."""
    guarded = Guarded(np.zeros(3 * PAGE - 64, np.uint8), at_end)
    ctypes.string_at(guarded.address + guarded.array.nbytes if at_end else guarded.address - 1, 1)


def multiply(name: str, spec: Any, n: int, k: int, m: int, at_end: bool) -> None:
    """One product with every array against a guard page, compared with the same one in ordinary memory."""
    rng = np.random.default_rng(n * k)
    kind = next(kind for kind in cases.ZERO_KINDS if kind.zero_point == spec.zero_point)
    weight = cases.make_weight(rng, spec, n, k, kind.dtype)
    packed = cases.pack(weight, name)
    x, bias = cases.make_activations(rng, m, k), rng.normal(0, 1, n).astype(np.float32)
    want = cases.linear(x, packed, bias)
    guarded = [Guarded(each, at_end) for each in (x, packed.buffer(), bias, np.zeros((m, n), np.float32))]
    x_at, weight_at, bias_at, y_at = (each.address for each in guarded)
    _core.linear_pointers(x_at, 0, k, m, weight_at, packed.nbytes, bias_at, y_at, 0, n, k, n, 1)
    assert cases.same_bits(guarded[3].array, want), f"{name} n={n} k={k} m={m}"


def main() -> None:
    """Every runnable kernel with shapes whose ends fit no vector; prints the kernel before it runs."""
    for row, activation in cases.kernel_cases():
        if not row["runnable"]:
            continue
        kinds = cases.zero_kinds(row["codebook"])
        for at, (n, k) in enumerate(cases.SHAPES):
            spec = cases.make_spec(
                row["bits"], row["codebook"], activation, cases.GROUP_SIZES[at % 5], kinds[(3 * at) % len(kinds)]
            )
            for at_end in (True, False):
                print(f"{row['name']} {spec} n={n} k={k} at_end={at_end}", flush=True)
                multiply(row["name"], spec, n, k, 1 + at % 3, at_end)
    print("done")


if __name__ == "__main__":
    main()
