"""GPTQModel: GPTQ with group-aware activation order. Head and embedding stay float."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

from benchmarks.accuracy_peers.job import Job, run
from benchmarks.accuracy_peers.setting import Grid

INSTALL = "pip install --no-build-isolation gptqmodel==7.6.0"
WORKERS = {"GPTQMODEL_CPU_WORKERS": "2"}  # it asks for two and stops where it counts fewer


def quantize(job: Job) -> None:
    """Writes a checkpoint in GPTQ's format."""
    os.environ.update(WORKERS)
    package: Any = import_module("gptqmodel")
    grid = Grid.parse(job.setting)
    config = package.QuantizeConfig(bits=grid.bits, group_size=grid.group, sym=grid.symmetric, device="cpu")
    model = package.GPTQModel.load(str(job.model), config, dtype="float32")
    samples = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in job.tokens()]
    model.quantize(samples, batch_size=4, backend=package.BACKEND.TORCH)
    model.save(str(job.out))


if __name__ == "__main__":
    run(quantize, ["gptqmodel", "torch"])
