"""Measuring trials of the automatic flow, with the engine where that knows the model."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tmac.evaluation.metrics import perplexity
from tmac.evaluation.scorer import EngineScorer, Scorer
from tmac.evaluation.significance import perplexity_ratio
from tmac.evaluation.windows import Windows
from tmac.formats.tmac_writer import write_checkpoint
from tmac.hf.auto_model import FloatModel, with_codes
from tmac.hf.pretrained import from_pretrained
from tmac.hf.scorer import HFScorer
from tmac.progress import with_progress
from tmac.quant.blocks import BlockSource
from tmac.quant.codes_cache import write_atomically
from tmac.quant.search import Measurement, Stage, Trial
from tmac.runtime.families import describe

CONFIDENCE = 0.95
HIDDEN_BYTES = 512 << 20
LOGIT_BYTES = 128 << 20

Losses = NDArray[np.float64]


class PerplexityJudge:
    """Perplexity beside that of the float model on the same windows of a held-out text.

    Args:
        model: the float model.
        ids: of the text.
        probe_tokens: how many of them a probe takes.
        window: tokens of a window.
        bos_id: what every window begins with, or None.
        folder: for trials and the losses of the float model.
        name: of the text, part of the name of the file with these losses.
        scorer: "engine", "hf", or "auto".
        progress: as everywhere.
    """

    def __init__(
        self,
        model: FloatModel,
        ids: Sequence[int],
        probe_tokens: int,
        window: int,
        bos_id: int | None,
        folder: Path,
        name: str,
        scorer: str = "auto",
        progress: bool | None = None,
    ) -> None:
        self._model, self._ids, self._window, self._bos_id = model, list(ids), window, bos_id
        self._probe = min(probe_tokens, len(self._ids))
        self._folder, self._name, self._progress = folder, name, progress
        self.scorer = choose_scorer(model, scorer)
        self._reference: Losses | None = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """See `Judge`."""
        return ("probe", "full") if self._probe < len(self._ids) else ("full",)

    @property
    def full_count(self) -> int:
        """Tokens that the last word is about."""
        return Windows(self._ids, self._window, self._bos_id).predicted

    @property
    def rule(self) -> str:
        """See `Judge`."""
        by = "tmac.Engine" if self.scorer == "engine" else "transformers with tmac's layers"
        return (
            f"the one-sided {CONFIDENCE:.0%} upper bound of the ratio of perplexities, paired by windows of "
            f"{self._window} tokens, on {self.full_count} tokens by {by}, is at most 1 + max_loss"
        )

    def reference(self) -> Losses:
        """Losses of the float model, kept in a file."""
        if self._reference is None:
            path = self._folder / f"reference-{self._name}.npy"
            found = read_array(path, self.full_count)
            if found is None:
                windows = Windows(self._ids, self._window, self._bos_id)
                found = source_losses(self._model.source, list(windows), self._progress)
                write_atomically(path, array_bytes(found))
            self._reference = found
        return self._reference

    def measure(self, trial: Trial, stage: Stage) -> Measurement:
        """See `Judge`."""
        ids = self._ids[: self._probe] if stage == "probe" else self._ids
        reference = self.reference()
        with trial_scorer(self._model, trial, self._folder, self.scorer) as scorer:
            losses = _losses(scorer, ids, self._window, self._bos_id, self._progress)
        wanted = reference[: len(losses)]
        ratio = perplexity_ratio(wanted, losses, self._window, CONFIDENCE)
        about = {"perplexity": perplexity(losses), "float perplexity": perplexity(wanted)}
        probe = None
        if stage == "full" and len(self.stages) > 1:
            count = Windows(self._ids[: self._probe], self._window, self._bos_id).predicted
            probe = math.expm1(float((losses - wanted)[:count].mean()))
        return Measurement(ratio.ratio - 1, ratio.upper - 1, len(losses), about, probe)


class CallableJudge:
    """What a function of the user says of a model: larger is better, and the loss is relative to the float model.

    Args:
        model: the float model.
        evaluate: `evaluate(model of transformers) -> float`.
        reference: gives the float model.
        folder: for trials.
    """

    stages: tuple[Stage, ...] = ("full",)
    scorer = "hf"
    full_count = 1
    rule = "the relative loss of the value that evaluate(model) returns is at most max_loss"

    def __init__(
        self, model: FloatModel, evaluate: Callable[[Any], float], reference: Callable[[], Any], folder: Path
    ) -> None:
        self._model, self._evaluate, self._reference, self._folder = model, evaluate, reference, folder
        self._value: float | None = None

    def measure(self, trial: Trial, stage: Stage) -> Measurement:
        """See `Judge`."""
        if self._value is None:
            self._value = self._checked(self._evaluate(self._reference()))
            if self._value == 0:
                raise ValueError("[auto_quantize] evaluate gives 0 for the float model: a relative loss has no meaning")
        with trial_folder(self._model, trial, self._folder) as folder:
            value = self._checked(self._evaluate(from_pretrained(folder, progress=False)))
        loss = (self._value - value) / abs(self._value)
        return Measurement(loss, loss, 1, {"value": value, "float value": self._value})

    def _checked(self, value: Any) -> float:
        number = float(value)
        if not np.isfinite(number):
            raise ValueError(f"[auto_quantize] evaluate must return a finite number, got {value!r}")
        return number


def choose_scorer(model: FloatModel, scorer: str) -> str:
    """The name "engine" or "hf". Raises ValueError for another one."""
    if scorer not in ("auto", "engine", "hf"):
        raise ValueError(f"[auto_quantize] scorer must be auto, engine or hf, found {scorer!r}")
    if scorer != "auto":
        return scorer
    try:
        describe(model.checkpoint.config or {})
    except ValueError:  # an unknown family, or something that the engine cannot follow
        return "hf"
    return "engine"


@contextmanager
def trial_folder(model: FloatModel, trial: Trial, folder: Path) -> Iterator[Path]:
    """The trial as a checkpoint of our format, which goes when the block ends."""
    import shutil

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trial"
    changed = with_codes(model.checkpoint, model.matrices, trial.codes, trial.plan.specs)
    try:
        write_checkpoint(changed, path, force=True)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def trial_scorer(model: FloatModel, trial: Trial, folder: Path, scorer: str, tokenizer: Any = None) -> Iterator[Scorer]:
    """The trial, ready to be measured; a tokenizer of transformers where texts are to be encoded."""
    with trial_folder(model, trial, folder) as path:
        if scorer == "hf":
            yield HFScorer(from_pretrained(path, progress=False), tokenizer, "trial")
            return
        from tmac.runtime.engine import Engine

        with Engine.from_pretrained(path, progress=False) as engine:
            yield EngineScorer(engine, "trial")


def _losses(scorer: Scorer, ids: Sequence[int], window: int, bos_id: int | None, progress: bool | None) -> Losses:
    windows = Windows(ids, window, bos_id)
    return np.concatenate([*with_progress(scorer.losses_of(windows), "measuring", progress, len(windows))])


def source_losses(source: BlockSource, texts: Sequence[Sequence[int]], progress: bool | None) -> Losses:
    """-log p in nats of every token but the first of some texts, by a float model whose blocks come one at a time.

    Texts of one length go through the blocks together, as many at a time as have 512 MiB of hidden states.
    """
    found: list[Losses | None] = [None] * len(texts)
    lengths: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        lengths.setdefault(len(text), []).append(number)
    for numbers in lengths.values():
        ids = torch.tensor([list(texts[number]) for number in numbers])
        hidden_size = source.begin(ids[:1]).shape[-1]
        step = max(1, HIDDEN_BYTES // (4 * hidden_size * ids.shape[1]))
        for begin in range(0, len(numbers), step):
            part = _part_losses(source, ids[begin : begin + step], progress)
            for number, losses in zip(numbers[begin : begin + step], part, strict=True):
                found[number] = losses
    return np.concatenate([losses for losses in found if losses is not None])


def _part_losses(source: BlockSource, ids: torch.Tensor, progress: bool | None) -> list[Losses]:
    hidden = source.begin(ids)
    rows = max(1, 2048 // ids.shape[1])
    last = len(source) - 1
    for index in with_progress(range(last), "float model", progress):
        with source.block(index) as module, torch.no_grad():
            for part in torch.split(hidden, rows):
                part.copy_(source.run(index, module, part))
    losses = []
    with source.block(last) as module, torch.no_grad():
        for one, text in zip(hidden, ids, strict=True):
            logits = source.run(last, module, one[None])[0, :-1]
            losses += [torch.nn.functional.cross_entropy(logits, text[1:], reduction="none").double().numpy()]
    return losses


def array_bytes(array: Losses) -> bytes:
    """A file of numpy with an array."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def read_array(path: Path, count: int) -> Losses | None:
    """f64 `[count]` from a file; None where it is missing, damaged or of another size."""
    try:
        array: Losses = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == (count,) and array.dtype == np.float64 else None
