"""The files that are measured, made once from a GGUF file: rounded anew for us, and for llama.cpp."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from tmac.codes import Codes, round_to_nearest
from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import Checkpoint, QuantizedLayer
from tmac.formats.tmac_writer import write_checkpoint
from tmac.spec import QuantSpec

PEER_TYPE = "Q8_0"


def rounded_checkpoint(source: Path, work: Path, spec: QuantSpec) -> Path:
    """A checkpoint of ours in `work` whose quantized weights, embedding and head among them, are of another grid.

    Every weight is dequantized and rounded to the nearest code, one after the other. A folder that is there is taken.

    Args:
        source: a quantized checkpoint, a GGUF file for instance.
        work: where the folder is made.
        spec: of all weights.
    """
    out = work / f"{source.stem}-W{spec.bits}g{spec.group_size}"
    if not out.exists():
        print(f"writing {out.name}", flush=True)
        work.mkdir(parents=True, exist_ok=True)
        write_checkpoint(rounded(open_checkpoint(source), spec), out)
    return out


def rounded(checkpoint: Checkpoint, spec: QuantSpec) -> Checkpoint:
    """The checkpoint with weights of another grid, which are made when they are read."""
    layers = {name: _layer(layer, spec) for name, layer in checkpoint.layers.items()}
    return replace(checkpoint, layers=layers)


def _layer(layer: QuantizedLayer, spec: QuantSpec) -> QuantizedLayer:
    def read() -> Codes:
        codes = layer.read()
        return replace(round_to_nearest(codes.dequantize(), spec), bias=codes.bias)

    # The other ways to read are of the old grid.
    whole = replace(layer, read_tensors=None, read_rows=None, read_blocks=None, read_bias=None)
    return replace(whole, spec=spec, source_type="", read=read)


def peer_file(source: Path, work: Path, programs: Path) -> Path:
    """The model as llama.cpp's Q8_0, made by `llama-quantize` in the folder `programs`.

    Raises:
        RuntimeError: the program ended without it.
    """
    out = work / f"{source.stem}-{PEER_TYPE}.gguf"
    if not out.exists():
        print(f"writing {out.name}", flush=True)
        work.mkdir(parents=True, exist_ok=True)
        part = out.with_suffix(".part")
        words = [str(programs / "llama-quantize"), "--allow-requantize", str(source), str(part), PEER_TYPE]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or not part.exists():
            part.unlink(missing_ok=True)
            raise RuntimeError(f"llama-quantize ended with status {done.returncode}: {done.stderr[-300:]}")
        part.rename(out)
    return out
