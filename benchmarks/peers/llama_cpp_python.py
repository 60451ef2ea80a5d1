"""llama.cpp's kernels, through the ggml libraries that llama-cpp-python builds: one graph of matrix products."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.ggml import TYPES, Ggml, Product
from benchmarks.peers.peer import Job, Kernel, Loaded, NotTimedError, Peer, main

INT8_ERROR = 0.015

# Ours beside each: as many bits per weight, as near as can be.
OURS: dict[str, dict[str, Any]] = {
    "q4_0": {"bits": 4, "group_size": 32},
    "q4_K": {"bits": 4, "group_size": 64, "zero_point": "offset"},
    "q3_K": {"bits": 3, "group_size": 64, "zero_point": "offset"},
    "q2_K": {"bits": 2, "group_size": 64, "zero_point": "offset"},
    "tq2_0": {"bits": 2, "codebook": "ternary", "group_size": 256},
    "q1_0": {"bits": 1, "group_size": 128},
    "q8_0": {"bits": 8, "group_size": 32},
}


class LlamaCpp(Peer):
    name = "llama-cpp-python"
    module = "llama_cpp"
    install = 'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36 numpy'

    made: tuple[tuple[str, int, int], NDArray[np.uint8], NDArray[np.float32]] | None = None

    @cached_property
    def ggml(self) -> Ggml:
        spec = importlib.util.find_spec("llama_cpp")
        assert spec is not None
        assert spec.origin is not None
        return Ggml(Path(spec.origin).parent / "lib")

    def versions(self) -> dict[str, str]:
        return {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}

    def kernels(self) -> list[Kernel]:
        return [Kernel(kind, ours, INT8_ERROR) for kind, ours in OURS.items()]

    def quantized(self, kind: str, n: int, k: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """(bytes, what they mean)."""
        weight = np.random.default_rng(0).standard_normal((n, k), dtype=np.float32)
        if kind == "tq2_0":  # a ternary weight, as the type was made for
            weight = np.sign(weight) * (np.abs(weight) > 0.5).astype(np.float32)
        data = self.ggml.quantize(kind, weight)
        return data, self.ggml.dequantize(kind, data, n, k)

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        kind = kernel.name
        block = self.ggml.base.ggml_blck_size(TYPES[kind])
        if job.k % block:
            raise NotTimedError(f"k is not a multiple of {block}")
        if self.made is None or self.made[0] != (kind, job.n, job.k):
            self.made = ((kind, job.n, job.k), *self.quantized(kind, job.n, job.k))
        _, data, meaning = self.made
        x = job.input()
        product = Product(self.ggml, kind, data, x, job.n, job.copies(data.nbytes))
        product.compute(job.threads)
        return Loaded(
            lambda: product.compute(job.threads),
            product.copies,
            data.nbytes,
            product.result(),
            meaning,
            x,
            extra={"repacked": product.repacked},
        )


if __name__ == "__main__":
    sys.exit(main(LlamaCpp()))
