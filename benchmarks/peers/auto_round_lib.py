"""auto-round-lib's kernels (ARK, from BesTLA), called as its own QuantLinear calls them.

Activations and scales are float32 and the compute type is "auto".
"""

from __future__ import annotations

import os
import sys

import numpy as np

from benchmarks.peers.peer import Job, Kernel, Loaded, NotTimedError, Peer, main

GROUP = 128
INT8_ERROR = 0.015
COMPUTE, SCALES = "auto", "fp32"


class AutoRoundLib(Peer):
    name = "auto-round-lib"
    module = "auto_round_kernel"
    install = "pip install torch==2.13.0 numpy auto-round-lib==0.16.0"

    def versions(self) -> dict[str, str]:
        import importlib.metadata

        return {package: importlib.metadata.version(package) for package in ("auto-round-lib", "torch")}

    def kernels(self) -> list[Kernel]:
        return [Kernel(f"int{bits} g{GROUP}", {"bits": bits, "group_size": GROUP}, INT8_ERROR) for bits in (4, 3, 2, 8)]

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        import auto_round_kernel as ark
        import torch

        if job.k % GROUP:
            raise NotTimedError(f"k is not a multiple of {GROUP}")
        # It takes the number of threads once, and computes a part of the product where there are fewer later.
        if os.environ.get("OMP_NUM_THREADS") != str(job.threads):
            raise NotTimedError(f"it needs OMP_NUM_THREADS={job.threads} when it starts")
        bits = kernel.ours["bits"]
        rng = np.random.default_rng(0)
        codes = rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (job.k, job.n), dtype=np.int8)
        scales = rng.uniform(0.005, 0.02, (job.k // GROUP, job.n)).astype(np.float32)
        meaning = (GROUP, COMPUTE, f"int{bits}", SCALES, False)
        no_zeros = torch.empty(0, dtype=torch.int8)
        first = ark.repack_quantized_weight(torch.from_numpy(codes), torch.from_numpy(scales), no_zeros, *meaning)
        nbytes = job.n * job.k * bits // 8 + scales.nbytes
        copies = self.copies_of((bits, job.n, job.k), first.clone, job.copies(nbytes))
        x, no_bias = torch.from_numpy(job.input()), torch.empty(0)

        def multiply(packed: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = ark.woqgemm(x, packed, no_bias, job.n, job.k, *meaning)
            return result

        def multiply_all() -> None:
            for packed in copies:
                multiply(packed)

        weight = (codes.reshape(-1, GROUP, job.n) * scales[:, None]).reshape(job.k, job.n).T
        return Loaded(multiply_all, len(copies), nbytes, multiply(first).numpy(), weight, x.numpy())


if __name__ == "__main__":
    sys.exit(main(AutoRoundLib()))
