"""Our kernels, as a worker beside the peers'."""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.multiply import fastest_reader, multiplier
from benchmarks.peers.peer import MOST_DECODED_TOKENS, Job, Kernel, Loaded, Peer, main
from benchmarks.weights import Weights
from tmac import _core
from tmac.spec import QuantSpec

INT8_ERROR = 0.015


class Tmac(Peer):
    name = "tmac"
    module = "tmac"
    install = "pip install ."
    loaded: tuple[tuple[dict[str, Any], int, int, int], Weights] | None = None

    def versions(self) -> dict[str, str]:
        return {"tmac": _core.__version__}

    def kernels(self) -> list[Kernel]:
        specs = ({"bits": bits, "group_size": 128} for bits in (1, 2, 3, 4, 8))
        return [self.kernel(json.dumps(spec)) for spec in specs]

    def kernel(self, name: str) -> Kernel:
        """Any spec is a kernel: its name is the JSON of QuantSpec's arguments."""
        return Kernel(name, json.loads(name), INT8_ERROR)

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        if self.loaded is None or self.loaded[0] != (kernel.ours, job.n, job.k, job.streamed_bytes):
            self.loaded = None  # before the next one is made
            weights = Weights(QuantSpec(**kernel.ours), job.n, job.k, "", job.streamed_bytes)
            self.loaded = ((kernel.ours, job.n, job.k, job.streamed_bytes), weights)
        weights = self.loaded[1]
        x, count = job.input(), len(weights.buffers)
        multiply, read = multiplier(weights, x, 1, job.threads), fastest_reader(weights, job.threads)

        def multiply_all() -> None:
            for index in range(count):
                multiply(index)

        def read_all() -> None:
            for index in range(count):
                read(index)

        result, weight = _core.linear(x, weights.buffers[0]), _core.dequantize(weights.buffers[0])
        extra = {"kernel": weights.kernel if job.m <= MOST_DECODED_TOKENS else weights.prompt_kernel}
        return Loaded(multiply_all, count, weights.bytes, result, weight, x, read_all, extra)


if __name__ == "__main__":
    sys.exit(main(Tmac()))
