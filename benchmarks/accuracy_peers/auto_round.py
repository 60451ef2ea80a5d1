"""AutoRound: rounding learned by signed gradients, block by block. Head and embedding stay float."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.accuracy_peers.job import Job, run
from benchmarks.accuracy_peers.setting import Grid

INSTALL = "pip install auto-round==0.16.1"
STEPS = 50  # of a block, as in its recipe "light"; its default of 200 takes hours on two cores
BATCH = 4


def quantize(job: Job) -> None:
    """Writes a checkpoint in AutoRound's format."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    grid, windows = Grid.parse(job.setting), job.tokens()
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job.model)
    batches = [torch.tensor(windows[at : at + BATCH]) for at in range(0, len(windows), BATCH)]
    samples: Any = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in batches]
    package: Any = import_module("auto_round")
    rounding = package.AutoRound(
        model,
        tokenizer,
        bits=grid.bits,
        group_size=grid.group,
        sym=grid.symmetric,
        iters=STEPS,
        nsamples=len(windows),
        seqlen=len(windows[0]),
        batch_size=BATCH,
        dataset=samples,
        device_map="cpu",
        amp=False,
        enable_torch_compile=False,
    )
    rounding.quantize_and_save(str(job.out), format="auto_round")


if __name__ == "__main__":
    run(quantize, ["auto-round", "torch"])
