"""Measuring trials of the automatic flow, with the engine where that knows the model."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tmac.evaluation.metrics import perplexity
from tmac.evaluation.scorer import EngineScorer, NoNumbersError, Scorer
from tmac.evaluation.significance import perplexity_ratio
from tmac.evaluation.windows import Windows
from tmac.formats.tmac_writer import write_checkpoint
from tmac.hf.auto_model import FloatModel, with_codes
from tmac.hf.float_losses import source_losses, together
from tmac.hf.pretrained import from_pretrained
from tmac.hf.scorer import HFScorer
from tmac.progress import with_progress
from tmac.quant.codes_cache import digest
from tmac.quant.loss_journal import measured_windows
from tmac.quant.search import Measurement, Stage, Trial
from tmac.runtime.families import describe

CONFIDENCE = 0.95
MEASURED = "measured"
TOGETHER = 16  # windows that an interrupted measurement loses at most
WRECKED = 1e6  # the loss of what says nothing any more, as a share

Losses = NDArray[np.float64]


class PerplexityJudge:
    """Perplexity beside that of the float model on the same windows of a held-out text.

    Args:
        model: the float model.
        ids: of the text.
        probe_tokens: how many of them a probe takes.
        window: tokens of a window.
        bos_id: what every window begins with, or None.
        folder: for trials and losses.
        name: a hash of text and float model, for files with losses.
        about: a hash of whatever else the codes of trials depend on.
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
        about: str = "",
        scorer: str = "auto",
        progress: bool | None = None,
    ) -> None:
        self._model, self._ids, self._window, self._bos_id = model, list(ids), window, bos_id
        self._probe = min(probe_tokens, len(self._ids))
        self._folder, self._name, self._progress = folder, name, progress
        self.scorer = choose_scorer(model, scorer)
        self._measured = folder / MEASURED / digest(name, about, self.scorer)[:16]

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

    def reference(self, count: int) -> Losses:
        """Losses of the float model, at least the first `count`; they are kept in a file."""
        wanted = list(Windows(self._ids, self._window, self._bos_id))
        ends = accumulate(len(window) - 1 for window in wanted)
        windows = wanted[: 1 + sum(end < count for end in ends)]
        path = self._folder / f"reference-{self._name}.losses"
        source, progress = self._model.source, self._progress
        group = together(source, self._window)
        return measured_windows(path, windows, lambda rest: source_losses(source, rest, group, progress), group)

    def measure(self, trial: Trial, stage: Stage) -> Measurement:
        """See `Judge`. A model whose logits are no numbers has lost more than any other."""
        ids = self._ids[: self._probe] if stage == "probe" else self._ids
        windows = Windows(ids, self._window, self._bos_id)
        wanted = self.reference(windows.predicted)[: windows.predicted]
        try:
            losses = self._losses(trial, stage, windows)
        except NoNumbersError as error:
            return wrecked(windows.predicted, str(error))
        found = perplexity(losses)
        if not math.isfinite(found):
            return wrecked(windows.predicted, f"a mean loss of {losses.mean():g} nats")
        ratio = perplexity_ratio(wanted, losses, self._window, CONFIDENCE)
        about = {"perplexity": found, "float perplexity": perplexity(wanted)}
        probe = None
        if stage == "full" and len(self.stages) > 1:
            count = Windows(self._ids[: self._probe], self._window, self._bos_id).predicted
            probe = min(math.expm1(min(float((losses - wanted)[:count].mean()), 700.0)), WRECKED)
        return Measurement(min(ratio.ratio - 1, WRECKED), min(ratio.upper - 1, WRECKED), len(losses), about, probe)

    def _losses(self, trial: Trial, stage: Stage, windows: Windows) -> Losses:
        path = self._measured / f"{trial.key}-{stage}.losses"

        def measure(rest: Sequence[Sequence[int]]) -> Iterator[Losses]:
            with trial_scorer(self._model, trial, self._folder, self.scorer) as scorer:
                groups = (rest[begin : begin + TOGETHER] for begin in range(0, len(rest), TOGETHER))
                found = chain.from_iterable(map(scorer.losses_of, groups))
                for losses in with_progress(found, "measuring", self._progress, len(rest)):
                    if not np.isfinite(losses).all():
                        raise NoNumbersError("the loss of a token is not finite")
                    yield losses

        return measured_windows(path, list(windows), measure, TOGETHER)


def wrecked(count: int, why: str) -> Measurement:
    """Of a model that says nothing any more."""
    return Measurement(WRECKED, WRECKED, count, {"wrecked": why})


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
            value = float(self._evaluate(from_pretrained(folder, progress=False)))
        if not np.isfinite(value):
            return wrecked(1, f"evaluate returned {value!r}")
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
