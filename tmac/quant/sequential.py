"""Quantizing block by block, each with the inputs that the low-bit blocks before it give.

A recipe that knows both these inputs and those of the float model can make up for errors of earlier blocks (GPTAQ,
arXiv 2504.02692). Every finished block is kept in a file whose name says what was chosen up to there, so that plans
which begin alike share their first blocks, and an interrupted pass goes on after its last block.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tmac.codes import Codes
from tmac.files import replacing
from tmac.progress import with_progress
from tmac.quant.blocks import BlockSource
from tmac.quant.codes_cache import Stored, digest, read_file, write_file
from tmac.quant.gather import advance, gather_block
from tmac.quant.statistics import LayerStatistics
from tmac.quant.statistics_cache import save_tensors
from tmac.spec import QuantSpec

Quantize = Callable[[str, Tensor, QuantSpec, LayerStatistics | None], Codes]


class SequentialPass:
    """One pass over a model.

    Args:
        source: the float model.
        specs: of its matrices; names that no block has are ignored.
        ids: calibration text, int64 `[windows, tokens]`.
        folder: where blocks are kept.
        context: a hash of anything else that the codes depend on.
        quantize: `(name, weight, spec, statistics) -> Codes`.
        begin: the input of the first block of the low-bit model; None where that is the float one's.
        progress: as everywhere.
        note: called with a name and seconds for every block that was made.
    """

    def __init__(
        self,
        source: BlockSource,
        specs: Mapping[str, QuantSpec],
        ids: Tensor,
        folder: Path,
        context: str,
        quantize: Quantize,
        *,
        begin: Callable[[Tensor], Tensor] | None = None,
        progress: bool | None = None,
        note: Callable[[str, float], None] = lambda name, seconds: None,
    ) -> None:
        self._source, self._specs, self._ids, self._folder = source, specs, ids, folder
        self._quantize, self._begin, self._progress, self._note = quantize, begin or source.begin, progress, note
        self._names = [[name for name in source.layers(index) if name in specs] for index in range(len(source))]
        self._blocks = max((index + 1 for index, names in enumerate(self._names) if names), default=0)
        inside = {name for names in self._names for name in names}
        chain = digest(context, [[name, specs[name].to_dict()] for name in sorted(specs.keys() - inside)])
        self._chains = []
        for names in self._names[: self._blocks]:
            chain = digest(chain, [[name, specs[name].to_dict()] for name in names])
            self._chains.append(chain)

    def run(self) -> dict[str, Path]:
        """Name of every matrix that lies in a block -> the file with its codes.

        Raises:
            ValueError: a recipe refuses a matrix; the message names it.
            OSError: the disk is full; the blocks that are finished stay.
        """
        done = 0
        while done < self._blocks and self._is_done(done):
            done += 1
        if done < self._blocks:
            self._run_from(done)
        self._hidden_path.unlink(missing_ok=True)
        return {name: self._path(index) for index in range(self._blocks) for name in self._names[index]}

    @property
    def _hidden_path(self) -> Path:
        return self._folder / "hidden.safetensors"

    def _path(self, index: int) -> Path:
        return self._folder / f"{index:03d}-{self._chains[index][:16]}.safetensors"

    def _is_done(self, index: int) -> bool:
        return not self._names[index] or read_file(self._path(index)).keys() == set(self._names[index])

    def _run_from(self, first: int) -> None:
        found = self._read_hidden(first)
        start, (hidden, floats) = (first, found) if found else (0, (self._begin(self._ids), None))
        if floats is None:
            floats = self._source.begin(self._ids)
        blocks = range(start, self._blocks)
        for index in with_progress(blocks, "quantizing block by block", self._progress):
            began = time.monotonic()
            made = index >= first
            hidden, floats = self._do(index, hidden, floats, made=made)
            if made:
                self._write_hidden(index + 1, hidden, floats)
                self._note(f"block {index}", time.monotonic() - began)

    def _do(self, index: int, hidden: Tensor, floats: Tensor, *, made: bool) -> tuple[Tensor, Tensor]:
        """The inputs of the next block, of the low-bit and of the float model; the codes are in their file then."""
        last = index + 1 == self._blocks
        with self._source.block(index) as module:
            linears = self._source.linears(index, module)
            if made and not self._is_done(index):
                self._make(index, module, linears, hidden, floats)
            if last:
                return hidden, floats
            floats = advance(self._source, index, module, floats)
            for name, stored in read_file(self._path(index)).items():
                linears[name].weight.data = torch.from_numpy(stored.codes.dequantize())
            return advance(self._source, index, module, hidden), floats

    def _make(
        self, index: int, module: nn.Module, linears: Mapping[str, nn.Linear], hidden: Tensor, floats: Tensor
    ) -> None:
        statistics = gather_block(self._source, index, module, hidden, floats, module_float=module)
        layers = {}
        for name in self._names[index]:
            weight = linears[name].weight.detach()
            codes = self._quantize(name, weight, self._specs[name], statistics.get(name))
            layers[name] = Stored(codes, 0.0, "sequential")
        write_file(self._path(index), layers)

    def _write_hidden(self, index: int, hidden: Tensor, floats: Tensor) -> None:
        """Both inputs of block `index`, f32: what a pass that is interrupted there goes on with."""
        if index == self._blocks:
            return
        about = {"index": json.dumps(index), "chain": self._chains[index - 1]}
        with replacing(self._hidden_path) as temporary:
            tensors = {"hidden": hidden.contiguous(), "floats": floats.contiguous()}
            save_tensors(tensors, temporary, about, self._hidden_path)

    def _read_hidden(self, index: int) -> tuple[Tensor, Tensor] | None:
        try:
            with safe_open(self._hidden_path, "pt") as file:
                about = file.metadata() or {}
                if index == 0 or (about["index"], about["chain"]) != (json.dumps(index), self._chains[index - 1]):
                    return None
                return file.get_tensor("hidden").clone(), file.get_tensor("floats").clone()
        except (SafetensorError, OSError, KeyError):
            return None
