"""Our kernels, as a worker beside the peers'."""

from __future__ import annotations

import json
import sys

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
    loaded: tuple[tuple[str, int, int], Weights] | None = None

    def versions(self) -> dict[str, str]:
        return {"tmac": _core.__version__}

    def kernels(self) -> list[Kernel]:
        specs = ({"bits": bits, "group_size": 128} for bits in (1, 2, 3, 4, 8))
        return [self.kernel(json.dumps(spec)) for spec in specs]

    def kernel(self, name: str) -> Kernel:
        """Any spec is a kernel: its name is the JSON of QuantSpec's arguments."""
        return Kernel(name, json.loads(name), INT8_ERROR)

    def weights(self, kernel: Kernel, job: Job) -> Weights:
        """Those of the last job where they serve this one too."""
        meaning = (kernel.name, job.n, job.k)
        if self.loaded is not None and self.loaded[0] == meaning:
            weights = self.loaded[1]
            if len(weights.buffers) >= job.copies(weights.bytes):
                return weights
        self.loaded = None  # before the next one is made
        self.loaded = (meaning, Weights(QuantSpec(**kernel.ours), job.n, job.k, "", job.streamed_bytes))
        return self.loaded[1]

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        weights, x = self.weights(kernel, job), job.input()
        count = min(len(weights.buffers), job.copies(weights.bytes))
        multiply, read = multiplier(weights, x, 1, job.threads), fastest_reader(weights, job.threads)

        def multiply_all() -> None:
            for index in range(count):
                multiply(index)

        def read_all() -> None:
            for index in range(count):
                read(index)

        result, weight = _core.linear(x, weights.buffers[0]), weights.exact.T
        extra = {"kernel": weights.kernel if job.m <= MOST_DECODED_TOKENS else weights.prompt_kernel}
        return Loaded(multiply_all, count, weights.bytes, result, weight, x, read_all, extra)


if __name__ == "__main__":
    sys.exit(main(Tmac()))
