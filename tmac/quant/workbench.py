"""Where codes of a model's matrices are made: each for itself, or block by block with low-bit inputs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from tmac.codes import Codes
from tmac.progress import with_progress
from tmac.quant.blocks import BlockSource
from tmac.quant.codes_cache import CodesCache, Stored, digest, read_file, write_atomically
from tmac.quant.matrix import Matrix
from tmac.quant.methods import RECIPES, Recipe
from tmac.quant.methods.rtn import round_to_nearest
from tmac.quant.options import WIDTHS, Option, screen
from tmac.quant.plan import check_weight
from tmac.quant.planner import Plan
from tmac.quant.search import Mode, Trial
from tmac.quant.sensitivity import Sensitivity
from tmac.quant.sequential import SequentialPass
from tmac.quant.statistics import LayerStatistics
from tmac.spec import QuantSpec

# All but the one that knows no widths.
FLOW_RECIPES: Mapping[str, Recipe] = {name: recipe for name, recipe in RECIPES.items() if name != "ternary"}


SCREENING = 2  # the version of what `screen` keeps


@dataclass(frozen=True, eq=False)
class Model:
    """A float model as the workbench sees it.

    Args:
        source: its blocks.
        matrices: what is to be quantized, in the order of the model.
        embedding: the input embedding, f32 `[vocabulary, hidden]`, read when it is called.
        begin: the input of the first block where the embedding has these codes: `(codes, ids) -> hidden`.
    """

    source: BlockSource
    matrices: tuple[Matrix, ...]
    embedding: Callable[[], Tensor]
    begin: Callable[[Codes, Tensor], Tensor]


class Workbench:
    """Makes codes, and keeps all of them in a folder.

    Args:
        model: the float model.
        sensitivities: gives the one of a matrix.
        ids: calibration text, int64 `[windows, tokens]`, for the sequential pass.
        folder: of the caches.
        context: a hash of what codes depend on beside matrix, spec and recipe.
        recipe: a name in `FLOW_RECIPES`.
        widths: bit widths to choose from.
        progress: as everywhere.
        note: called with a name and seconds when codes of a matrix or block were made.
    """

    def __init__(
        self,
        model: Model,
        sensitivities: Callable[[Matrix], Sensitivity],
        ids: Tensor,
        folder: Path,
        context: str,
        *,
        recipe: str = "gptq",
        widths: Sequence[int] = WIDTHS,
        progress: bool | None = None,
        note: Callable[[str, float], None] = lambda name, seconds: None,
    ) -> None:
        self.model, self.sensitivities, self.ids, self.folder = model, sensitivities, ids, folder
        self.recipe, self.widths, self.progress, self.note = recipe, widths, progress, note
        self.context = digest(context, recipe)
        self.cache = CodesCache(folder / "layers", self.context)

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        return self.model.matrices

    def screen(self) -> list[list[Option]]:
        """See `CodesMaker`; kept in a file for each block."""
        found: dict[str, list[Option]] = {}
        todo = []
        for matrix in self.matrices:
            kept = _read_options(self._screen_path(matrix))
            if kept is None:
                todo.append(matrix)
            else:
                found[matrix.name] = kept
        for matrix, weight in self._weights(todo, "looking at options"):
            began = time.monotonic()
            options = screen(weight, self.sensitivities(matrix), _round, self.widths)
            _write_options(self._screen_path(matrix), options)
            found[matrix.name] = options
            self.note(f"options of {matrix.name}", time.monotonic() - began)
        return [found[matrix.name] for matrix in self.matrices]

    def make(self, wanted: Sequence[tuple[Matrix, QuantSpec]]) -> list[float]:
        """See `CodesMaker`."""
        losses = {(matrix.name, spec): self.cache.loss(matrix.name, spec, self.recipe) for matrix, spec in wanted}
        missing: dict[str, list[QuantSpec]] = {}
        for matrix, spec in wanted:
            if losses[matrix.name, spec] is None:
                missing.setdefault(matrix.name, []).append(spec)
        todo = [matrix for matrix in self.matrices if matrix.name in missing]
        for matrix, weight in self._weights(todo, "making codes"):
            for spec in missing[matrix.name]:
                losses[matrix.name, spec] = self._make_one(matrix, weight, spec).loss
        found = [losses[matrix.name, spec] for matrix, spec in wanted]
        return [loss for loss in found if loss is not None]

    def codes(self, matrix: Matrix, spec: QuantSpec) -> Codes:
        """The codes of a matrix by itself; made again where the file is damaged."""
        stored = self.cache.get(matrix.name, spec, self.recipe)
        if stored is None:
            for _, weight in self._weights([matrix], None):
                stored = self._make_one(matrix, weight, spec)
        assert stored is not None
        return stored.codes

    def not_activated(self) -> list[str]:
        """Names of the matrices that the calibration text never reached, which are rounded to nearest."""
        return [matrix.name for matrix in self.matrices if not self.sensitivities(matrix).activated]

    def trial(self, plan: Plan, mode: Mode) -> Trial:
        """The plan with codes, which are made where they are missing."""
        specs, matrices = plan.specs, {matrix.name: matrix for matrix in self.matrices}
        if mode == "single":
            return Trial(plan, mode, lambda name: self.codes(matrices[name], specs[name]))
        files = self._sequential(plan).run()

        def codes(name: str) -> Codes:
            if name not in files:
                return self.codes(matrices[name], specs[name])
            return read_file(files[name])[name].codes

        return Trial(plan, mode, codes)

    def _sequential(self, plan: Plan) -> SequentialPass:
        embedding = next((matrix for matrix in self.matrices if matrix.kind == "embedding"), None)
        codes = None if embedding is None else self.codes(embedding, plan.specs[embedding.name])
        return SequentialPass(
            self.model.source,
            plan.specs,
            self.ids,
            self.folder / "sequential",
            self.context,
            self._quantize,
            begin=None if codes is None else lambda ids: self.model.begin(codes, ids),
            progress=self.progress,
            note=self.note,
        )

    def _quantize(self, name: str, weight: Tensor, spec: QuantSpec, statistics: LayerStatistics | None) -> Codes:
        """The recipe, or rounding where nothing is known of the inputs. Raises ValueError that names the layer."""
        known = statistics is not None and bool((statistics.importance > 0).any())
        recipe = FLOW_RECIPES[self.recipe] if known else round_to_nearest
        try:
            return recipe(weight, spec, statistics if known else None)
        except ValueError as error:
            raise ValueError(f"[auto_quantize] {name}: {error}") from error

    def _make_one(self, matrix: Matrix, weight: Tensor, spec: QuantSpec) -> Stored:
        began = time.monotonic()
        sensitivity = self.sensitivities(matrix)
        codes = self._quantize(matrix.name, weight, spec, sensitivity.statistics)
        difference = torch.from_numpy(codes.dequantize()).sub_(weight)
        stored = Stored(codes, sensitivity.loss(difference), self.recipe if sensitivity.activated else "rtn")
        self.cache.put(matrix.name, spec, self.recipe, stored)
        self.note(matrix.name, time.monotonic() - began)
        return stored

    def _weights(self, matrices: Sequence[Matrix], title: str | None) -> Iterator[tuple[Matrix, Tensor]]:
        return weights_of(self.model, matrices, title or "", self.progress if title else False)

    def _screen_path(self, matrix: Matrix) -> Path:
        key = digest(self.context, matrix.name, list(self.widths), SCREENING)[:16]
        return self.folder / "layers" / f"{matrix.name}-options-{key}.json"


def weights_of(
    model: Model, matrices: Sequence[Matrix], title: str, progress: bool | None
) -> Iterator[tuple[Matrix, Tensor]]:
    """The weights of some matrices, f32, block by block in the order of the model.

    Raises:
        ValueError: one holds NaN, Inf or numbers that f16 scales cannot stand for; it is named.
    """
    bar = iter(with_progress(matrices, title, progress))
    for block, group in groupby(sorted(matrices, key=_block_of), key=_block_of):
        with _weights_in(model, block) as weights:
            for matrix, _ in zip(group, bar, strict=False):
                weight = weights(matrix.name)
                check_weight(weight, matrix.name)
                yield matrix, weight
    next(bar, None)  # closes the bar


@contextmanager
def _weights_in(model: Model, block: int) -> Iterator[Callable[[str], Tensor]]:
    """Gives the weights of a block by their names, while the block is in memory."""
    if block < 0:
        yield lambda _: model.embedding()
        return
    with model.source.block(block) as module:
        linears = model.source.linears(block, module)
        yield lambda name: linears[name].weight.detach()


def _block_of(matrix: Matrix) -> int:
    return -1 if matrix.block is None else matrix.block


def _round(weight: Tensor, spec: QuantSpec, sensitivity: Sensitivity) -> Codes:
    return round_to_nearest(weight.contiguous(), spec, sensitivity.statistics)


def _write_options(path: Path, options: Sequence[Option]) -> None:
    values = [{"spec": option.spec.to_dict(), "size": option.size, "loss": option.loss} for option in options]
    write_atomically(path, json.dumps(values).encode())


def _read_options(path: Path) -> list[Option] | None:
    """None where the file is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
        return [Option(QuantSpec.from_dict(each["spec"]), int(each["size"]), float(each["loss"])) for each in values]
    except (OSError, ValueError, KeyError, TypeError):
        return None
