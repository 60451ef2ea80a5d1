"""torch's own int4 and int8 operators for CPUs.

int4pack and int8pack take bfloat16 activations (float32 falls to a scalar path); the conversion is not timed.
dynamic int8 is what torch.ao's `quantize_dynamic` runs: float32 activations, rounded once per tensor.
"""

from __future__ import annotations

import platform
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.peer import Job, Kernel, Loaded, NotTimedError, Peer, main

GROUP = 128
INT8PACK_COLUMNS = 16
BF16_ERROR = 0.01  # 8 bits of mantissa in the activations and the result
PER_TENSOR_ERROR = 0.05  # 7 bits for the largest activation of all tokens


class Torch(Peer):
    name = "torch"
    module = "torch"
    install = "pip install torch==2.13.0 numpy"

    def versions(self) -> dict[str, str]:
        import torch

        return {"torch": torch.__version__}

    def kernels(self) -> list[Kernel]:
        per_row = {"bits": 8, "group_size": -1}
        found = [
            Kernel("int4pack g128, bf16", {"bits": 4, "group_size": GROUP, "zero_point": "offset"}, BF16_ERROR),
            Kernel("int8pack per row, bf16", per_row, BF16_ERROR),
            Kernel("dynamic int8 per row", per_row, PER_TENSOR_ERROR),
            Kernel("dyn_quant_4bit g32", {"bits": 4, "group_size": 32}, BF16_ERROR),
        ]
        import torch

        return [kernel for kernel in found if "dyn_quant" not in kernel.name or hasattr(torch.ops.aten, DYN_QUANT)]

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        import torch

        torch.set_num_threads(job.threads)
        load = {"int4pack": load_int4, "int8pack": load_int8, "dynamic": load_dynamic, "dyn_quant_4bit": load_dyn_quant}
        with torch.inference_mode():
            return load[kernel.name.split()[0]](self, job, torch.from_numpy(job.input()))


DYN_QUANT = "_dyn_quant_matmul_4bit"


def loaded(
    peer: Peer, job: Job, make: Callable[[], Any], nbytes: int, multiply: Callable[[Any], Any], weight: Any, x: Any
) -> Loaded:
    """`make()` packs one copy of the weight, `multiply(packed)` runs the operator."""
    import torch

    copies = peer.copies_of((multiply.__qualname__, job.n, job.k), make, job.copies(nbytes))

    def multiply_all() -> None:
        with torch.inference_mode():
            for packed in copies:
                multiply(packed)

    result = multiply(copies[0]).float().numpy()
    return Loaded(multiply_all, len(copies), nbytes, result, weight.float().numpy(), x.float().numpy())


def load_int4(peer: Peer, job: Job, x: Any) -> Loaded:
    import torch

    if job.k % GROUP:
        raise NotTimedError(f"k is not a multiple of {GROUP}")
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (job.n, job.k), dtype=torch.int32, generator=rng)
    groups = job.k // GROUP
    scales = (torch.rand(job.n, groups, generator=rng) * 0.015 + 0.005).bfloat16()
    offsets = (torch.randn(job.n, groups, generator=rng) * 0.05).bfloat16()
    terms = torch.stack([scales.T, offsets.T], dim=-1).contiguous()  # [groups, n, 2]
    weight = (codes.view(job.n, groups, GROUP) - 8) * scales.float()[..., None] + offsets.float()[..., None]
    bf16 = x.bfloat16()
    first = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    run = torch.ops.aten._weight_int4pack_mm_for_cpu
    return loaded(
        peer,
        job,
        lambda: (first.clone(), terms.clone()),
        job.n * job.k // 2 + 2 * terms.numel(),
        lambda packed: run(bf16, packed[0], GROUP, packed[1]),
        weight.view(job.n, job.k),
        bf16,
    )


def random_int8(job: Job) -> tuple[Any, Any]:
    import torch

    rng = np.random.default_rng(0)
    codes = torch.from_numpy(rng.integers(-127, 128, (job.n, job.k), dtype=np.int8))
    return codes, torch.from_numpy(rng.uniform(0.0005, 0.002, job.n).astype(np.float32))


def load_int8(peer: Peer, job: Job, x: Any) -> Loaded:
    import torch

    if job.k % INT8PACK_COLUMNS:
        raise NotTimedError(f"it reads past the end where k is not a multiple of {INT8PACK_COLUMNS}")
    codes, scales = random_int8(job)
    scales = scales.bfloat16()
    bf16 = x.bfloat16()
    return loaded(
        peer,
        job,
        codes.clone,
        codes.numel() + 2 * job.n,
        lambda packed: torch.ops.aten._weight_int8pack_mm(bf16, packed, scales),
        codes * scales.float()[:, None],
        bf16,
    )


def load_dynamic(peer: Peer, job: Job, x: Any) -> Loaded:
    import torch

    codes, scales = random_int8(job)
    zeros = torch.zeros(job.n, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # deprecated, and still what quantize_dynamic uses
        weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
    quantized = torch.ops.quantized
    return loaded(
        peer,
        job,
        lambda: quantized.linear_prepack(weight, None),
        codes.numel() + 4 * job.n,
        lambda packed: quantized.linear_dynamic(x, packed, True),  # reduce_range, as quantize_dynamic sets it
        weight.dequantize(),
        x,
    )


def load_dyn_quant(peer: Peer, job: Job, x: Any) -> Loaded:
    """Made for Arm; elsewhere a reference path."""
    import torch

    if job.m > 1 and platform.machine() not in ("aarch64", "arm64"):
        raise NotTimedError("more than one token takes seconds on this CPU's reference path")

    group = 32
    if job.k % group:
        raise NotTimedError(f"k is not a multiple of {group}")
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (job.n, job.k), dtype=np.uint8)
    scales = rng.uniform(0.005, 0.02, (job.n, job.k // group)).astype(np.float32)
    rounded = torch.from_numpy(scales).bfloat16()
    # Two codes a byte, the even column in the low half.
    nibbles = torch.from_numpy(codes[:, ::2] | codes[:, 1::2] << 4)
    weight = (torch.from_numpy(codes).view(job.n, -1, group).float() - 8) * rounded.float()[..., None]
    aten = torch.ops.aten
    first = aten._dyn_quant_pack_4bit_weight(nibbles, rounded, None, group, job.k, job.n)
    return loaded(
        peer,
        job,
        first.clone,
        first.numel() * first.element_size(),
        lambda packed: aten._dyn_quant_matmul_4bit(x, packed, group, job.k, job.n),
        weight.view(job.n, job.k),
        x,
    )


if __name__ == "__main__":
    sys.exit(main(Torch()))
