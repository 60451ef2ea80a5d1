"""HQQ: half-quadratic quantization, which looks at the weights alone. Head and embedding stay float."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from benchmarks.accuracy_peers.job import Job, run
from benchmarks.accuracy_peers.setting import Grid

INSTALL = "pip install --no-build-isolation hqq==0.2.8.post1"
HEAD = "lm_head"


def quantize(job: Job) -> None:
    """Writes `dense.safetensors`, the float32 weights that HQQ's codes mean, and `sizes.json`, their bytes.

    Scales and zeros are float16, as in a model that is loaded in float16.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    package: Any = import_module("hqq.core.quantize")
    grid = Grid.parse(job.setting)
    config = package.BaseQuantizeConfig(nbits=grid.bits, group_size=grid.group, axis=1)["weight_quant_params"]
    model = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    dense: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name.endswith(HEAD):
            continue
        codes, meta = package.Quantizer.quantize(
            module.weight.data, device="cpu", compute_dtype=torch.float16, **config
        )
        scale, zero = meta["scale"].half(), meta["zero"].half()
        wide = {**meta, "scale": scale.float(), "zero": zero.float(), "compute_dtype": torch.float32}
        weight = package.Quantizer.dequantize(codes, wide).reshape(module.weight.shape)
        dense[f"{name}.weight"] = weight.float().contiguous()
        sizes[f"{name}.weight"] = sum(part.numel() * part.element_size() for part in (codes, scale, zero))
    save_file(dense, job.out / "dense.safetensors")
    (job.out / "sizes.json").write_text(json.dumps(sizes))


if __name__ == "__main__":
    run(quantize, ["hqq", "torch"])
