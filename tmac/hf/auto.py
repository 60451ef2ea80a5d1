"""`auto_quantize`: the smallest low-bit model whose loss stays under a bound."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tmac import _core
from tmac.evaluation.choices import load_questions
from tmac.files import remove_leftovers
from tmac.formats.tmac_writer import check_replaceable, write_checkpoint
from tmac.hf.auto_choices import ChoicesJudge
from tmac.hf.auto_judge import MEASURED, CallableJudge, PerplexityJudge
from tmac.hf.auto_model import FloatModel, open_float, with_codes
from tmac.hf.auto_texts import CALIBRATION, HELD_OUT, bos_of, fingerprint, token_ids, windows
from tmac.hf.pretrained import from_pretrained, load_tokenizer
from tmac.quant.codes_cache import digest
from tmac.quant.fisher import fisher
from tmac.quant.gather import gather
from tmac.quant.options import WIDTHS
from tmac.quant.planner import Planner
from tmac.quant.report import make_report, write_json
from tmac.quant.report_plot import write_plot
from tmac.quant.search import Goal, Outcome, Search, Trial
from tmac.quant.sensitivity import Sensitivities, token_frequency
from tmac.quant.trial_log import TrialLog
from tmac.quant.workbench import FLOW_RECIPES, Model, Workbench, weights_of
from tmac.spec import QuantSpec

LOG_NAME = "trials.jsonl"


@dataclass(frozen=True, eq=False)
class AutoResult:
    """What `auto_quantize` has found.

    Args:
        path: the folder with the model; None where `out` was None.
        model: the low-bit model of transformers where `out` was None.
        held: whether the bound is held.
        loss, upper: the loss as a share of the float model's, and its upper bound with 95 % confidence.
        bits_per_weight: over all matrices, head and embedding included, one that is shared counted once.
        bytes_per_token: bytes of matrices that one generated token reads.
        specs: of every matrix.
        report: everything about the search, plain JSON values.
        search_folder: with the log, the report and its picture; None where it was a temporary one.
    """

    path: Path | None
    model: Any
    held: bool
    loss: float
    upper: float
    bits_per_weight: float
    bytes_per_token: int
    specs: dict[str, QuantSpec]
    report: dict[str, Any] = field(repr=False)
    search_folder: Path | None


@dataclass(frozen=True)
class _Settings:
    """What the measurements depend on beside model and texts."""

    metric: str
    recipe: str
    widths: tuple[int, ...]
    calibration_tokens: int
    gradient_tokens: int
    evaluation_tokens: int
    probe_tokens: int
    window: int

    def values(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**vars(self), "widths": list(self.widths)}


def auto_quantize(
    model_or_path: Any,
    out: str | Path | None = None,
    *,
    max_loss: float | None = None,
    bits: float | None = None,
    metric: str = "perplexity",
    calibration: Any = None,
    text: Any = None,
    questions: Any = None,
    evaluate: Callable[[Any], float] | None = None,
    budget: float | None = None,
    resume: bool = True,
    force: bool = False,
    progress: bool | None = None,
    tokenizer: Any = None,
    search_folder: str | Path | None = None,
    recipe: str = "gptq",
    widths: Sequence[int] = WIDTHS,
    sequential: bool = False,
    scorer: str = "auto",
    calibration_tokens: int = 16_384,
    gradient_tokens: int = 8_192,
    evaluation_tokens: int = 102_400,
    probe_tokens: int = 20_480,
    window: int = 512,
) -> AutoResult:
    """Quantizes a float model with as few bits as a bound on its loss allows (docs/quantization.md).

    Bits and group formats are allotted to all matrices, head and embedding included, by what their errors are
    predicted to cost; the prediction is corrected by measurements, and the result is confirmed by the metric. All
    measurements are kept in `search_folder`: a search that was interrupted goes on there and ends with the same bytes.

    Args:
        model_or_path: a folder, a file, the id of a repository on the hub, or a causal language model of transformers.
        out: the folder to write; None: the low-bit model is returned in `AutoResult.model`.
        max_loss: of the metric, as a share: 0.01 (the default) is one per cent. Excludes `bits`.
        bits: a budget in bits per weight over all matrices, for the best model in it.
        metric: "perplexity" (a larger one is a loss), or "accuracy" in multiple choice on `questions`.
        calibration: text for the recipes: a file, the name of a package's text as for `tmac.evaluation.texts`, a list
            of texts, or token ids.
        text: held-out text for the metric, another one than `calibration`.
        questions: a file or a package's name for `tmac.evaluation.choices.load_questions`, or a list of questions.
        evaluate: `evaluate(model of transformers) -> float`, larger is better, instead of a metric.
        budget: seconds, over all runs of one search; what was found by then is the result.
        resume: False discards the log of an earlier search.
        force: replace `out` where it is a checkpoint of our format.
        progress: True or False; None shows bars on a terminal for what takes over two seconds.
        tokenizer: of transformers; None: the one beside the model.
        search_folder: for log and caches; None: `out` with ".search" added, or a temporary folder.
        recipe: "gptq", or another one of `tmac.quant.methods.RECIPES` but "ternary".
        widths: bit widths to choose from.
        sequential: also try to quantize each block with the inputs that the low-bit blocks before it give, and keep
            that where it measures better. It takes about as long as the rest of the search.
        scorer: "engine" or "hf"; "auto" is the engine for families that it knows.
        calibration_tokens: of `calibration`, for statistics.
        gradient_tokens: of its beginning, for sensitivities.
        evaluation_tokens: of `text`.
        probe_tokens: of its beginning, for first looks.
        window: tokens that a text is cut into.

    Returns:
        the result; where no model holds the bound, the best one that was found, with `held=False`.

    Raises:
        ValueError: arguments have no meaning together, a text is too short, a weight holds NaN (the layer is named), or
            the log in `search_folder` belongs to another search.
        FormatError: the model's files are damaged.
        OSError: `out` exists, the disk is full, ...

    Example:
        >>> result = tmac.auto_quantize("SmolLM2-135M", "small", max_loss=0.01)
    """
    goal = Goal(0.01 if max_loss is None and bits is None else max_loss, bits)
    settings = _Settings(
        "evaluate" if evaluate is not None else metric,
        recipe,
        tuple(widths),
        calibration_tokens,
        min(gradient_tokens, calibration_tokens),
        evaluation_tokens,
        probe_tokens,
        window,
    )
    _check(settings, budget, evaluate)
    target = None if out is None else Path(out)
    with _search_folder(target, search_folder) as folder:
        model = open_float(model_or_path)
        if tokenizer is None and not isinstance(model_or_path, nn.Module):
            tokenizer = _tokenizer(model_or_path)
        asked = _Asked(model_or_path, calibration, text, questions, tokenizer, scorer, evaluate, sequential)
        flow = _Flow(model, settings, folder, asked, progress)
        with TrialLog(folder / LOG_NAME, flow.subject(), fresh=not resume) as log:
            remove_leftovers(folder)
            if not resume:
                shutil.rmtree(folder / MEASURED, ignore_errors=True)
            return flow.run(goal, log, target, force, budget, keep=target is not None or search_folder is not None)


@dataclass(frozen=True, eq=False)
class _Asked:
    """Arguments of `auto_quantize` as they came."""

    model_or_path: Any
    calibration: Any
    text: Any
    questions: Any
    tokenizer: Any
    scorer: str
    evaluate: Callable[[Any], float] | None
    sequential: bool


class _Flow:
    """One call of `auto_quantize`."""

    def __init__(
        self, model: FloatModel, settings: _Settings, folder: Path, asked: _Asked, progress: bool | None
    ) -> None:
        self._model, self._settings, self._folder, self._progress = model, settings, folder, progress
        self._asked, self._bos_id = asked, bos_of(asked.tokenizer)
        self._seconds: dict[str, float] = {}
        self._cpu_seconds: dict[str, float] = {}
        calibration = CALIBRATION if asked.calibration is None else asked.calibration
        self._calibration = token_ids(calibration, asked.tokenizer, settings.calibration_tokens, "calibration")
        _check_vocabulary(model, self._calibration, "calibration")
        _check_positions(model, settings.window)
        self._measured_on = ""
        self._judge = self._make_judge()

    def _make_judge(self) -> Any:
        asked, model, folder = self._asked, self._model, self._folder
        if asked.evaluate is not None:
            return CallableJudge(model, asked.evaluate, self._float_model, folder)
        if self._settings.metric == "accuracy":
            questions = asked.questions
            if isinstance(questions, (str, Path)):
                questions = load_questions(questions)
            judge = ChoicesJudge(
                model, questions or (), self._float_model, asked.tokenizer, folder, asked.scorer, self._progress
            )
            self._measured_on = judge.fingerprint
            return judge
        return self._perplexity_judge()

    def _perplexity_judge(self) -> PerplexityJudge:
        asked, settings = self._asked, self._settings
        text = HELD_OUT if asked.text is None else asked.text
        ids = token_ids(text, asked.tokenizer, settings.evaluation_tokens, "evaluation")
        _check_vocabulary(self._model, ids, "evaluation")
        if ids[: len(self._calibration)] == self._calibration[: len(ids)]:
            raise ValueError("[auto_quantize] the calibration text is the held-out text: give two that differ")
        self._measured_on = fingerprint(ids, self._bos_id)
        name = fingerprint(ids, self._model.source.fingerprint, settings.window, self._bos_id)
        about = fingerprint(self._calibration, settings.values(), _core.__version__)
        return PerplexityJudge(
            self._model,
            ids,
            settings.probe_tokens,
            settings.window,
            self._bos_id,
            self._folder,
            name,
            about,
            asked.scorer,
            self._progress,
        )

    def _float_model(self) -> Any:
        if isinstance(self._asked.model_or_path, nn.Module):
            return self._asked.model_or_path
        return from_pretrained(self._asked.model_or_path, progress=False)

    def subject(self) -> dict[str, Any]:
        """What the log's measurements depend on."""
        settings = self._settings
        return {
            "model": self._model.source.fingerprint,
            "calibration": fingerprint(self._calibration, self._bos_id),
            "text": self._measured_on,
            **settings.values(),
            "scorer": self._judge.scorer,
            "version": _core.__version__,
        }

    def run(
        self, goal: Goal, log: TrialLog, out: Path | None, force: bool, budget: float | None, *, keep: bool
    ) -> AutoResult:
        ours = log.find("writing", goal.key) is not None
        if out is not None and out.exists():
            if not force and not ours:
                raise FileExistsError(f"{out} exists already")
            check_replaceable(out.resolve(), self._model.checkpoint.path)
        began = time.monotonic()
        bench = self._workbench(log)
        planner = self._timed("options", lambda: Planner(bench))
        search = Search(
            planner,
            bench.trial,
            self._judge,
            log,
            goal,
            sequential=self._asked.sequential,
            budget=budget,
            started=began,
        )
        outcome = self._timed("trials", search.run)
        trial = bench.trial(outcome.plan, outcome.mode)
        path, model = self._write(trial, goal, log, out)
        self._seconds["total"] = time.monotonic() - began
        report = make_report(goal, outcome, self._judge.rule, log.all("trial"), self._about(bench, out, search))
        if keep:
            self._write_report(report)
        return _result(outcome, report, path, model, self._folder if keep else None)

    def _workbench(self, log: TrialLog) -> Workbench:
        settings, model = self._settings, self._model
        source, cache = model.source, self._folder / "statistics"
        text = windows(self._calibration, settings.window, self._bos_id)
        floats = Model(source, model.matrices, model.embedding, model.begin)
        if log.find("checked", "weights") is None:  # NaN in a weight would come to light behind it
            for _ in weights_of(floats, model.matrices, "checking weights", self._progress):
                pass
            log.add("checked", "weights")
        length = min(settings.window, 256)
        begin = windows(self._calibration[: settings.gradient_tokens], length, self._bos_id)
        statistics = self._timed("statistics", lambda: gather(source, text, cache=cache, progress=self._progress))
        gradients = self._timed("gradients", lambda: fisher(source, begin, cache=cache, progress=self._progress))
        rows = model.matrices[0].out_features if model.matrices[0].kind == "embedding" else 1
        sensitivities = Sensitivities(
            statistics,
            gradients.row_weight,
            token_frequency(text.clamp_max(rows - 1), rows),
            gradients.embedding * model.embedding_scale() ** 2,
            gradients.tokens,
        )
        known = {"model", "calibration", "calibration_tokens", "gradient_tokens", "window", "recipe", "version"}
        context = digest({key: value for key, value in self.subject().items() if key in known})

        def note(name: str, seconds: float) -> None:
            log.add("made", name, seconds=round(seconds, 3))

        return Workbench(
            floats,
            sensitivities,
            text,
            self._folder,
            context,
            recipe=settings.recipe,
            widths=settings.widths,
            progress=self._progress,
            note=note,
        )

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        began, cpu_began = time.monotonic(), time.process_time()
        try:
            return work()
        finally:
            self._seconds[name] = time.monotonic() - began
            self._cpu_seconds[name] = time.process_time() - cpu_began

    def _write(self, trial: Trial, goal: Goal, log: TrialLog, out: Path | None) -> tuple[Path | None, Any]:
        changed = with_codes(self._model.checkpoint, self._model.matrices, trial.codes, trial.plan.specs)
        if out is not None:
            if log.find("writing", goal.key) is None:
                log.add("writing", goal.key, plan=trial.key)
            write_checkpoint(changed, out, force=True)
            return out, None
        folder = self._folder / "result"
        write_checkpoint(changed, folder, force=True)
        return None, from_pretrained(folder, progress=False)

    def _about(self, bench: Workbench, out: Path | None, search: Search) -> dict[str, Any]:
        settings = self._settings
        notes = []
        by_perplexity = isinstance(self._judge, PerplexityJudge)
        if by_perplexity and self._judge.full_count < 100_000:
            notes.append(f"{self._judge.full_count} tokens are fewer than the 100,000 that the rule asks for")
        return {
            "tmac": _core.__version__,
            "model": self._model.name,
            "out": None if out is None else str(out),
            "counted": "tokens" if by_perplexity else "questions" if isinstance(self._judge, ChoicesJudge) else "value",
            "float_bytes": self._model.checkpoint.nbytes,
            "settings": settings.values(),
            "scorer": self._judge.scorer,
            "not_activated": bench.not_activated(),
            "left_float": list(self._model.left_float),
            "notes": notes,
            "threads": torch.get_num_threads(),
            "seconds": {name: round(value, 2) for name, value in self._seconds.items()},
            "cpu_seconds": {name: round(value, 2) for name, value in self._cpu_seconds.items()},
            "elapsed": search.elapsed(),
        }

    def _write_report(self, report: dict[str, Any]) -> None:
        write_json(report, self._folder)
        if write_plot(report, self._folder) is None:
            report["notes"].append("no picture: pip install matplotlib")


def _result(outcome: Outcome, report: dict[str, Any], path: Path | None, model: Any, folder: Path | None) -> AutoResult:
    measured = outcome.measured["measured"]
    return AutoResult(
        path,
        model,
        outcome.held,
        measured["loss"],
        measured["upper"],
        outcome.plan.bits_per_weight,
        outcome.plan.bytes_per_token,
        outcome.plan.specs,
        report,
        folder,
    )


def _check(settings: _Settings, budget: float | None, evaluate: Any) -> None:
    if evaluate is None and settings.metric not in ("perplexity", "accuracy"):
        raise ValueError(f"[auto_quantize] metric must be perplexity or accuracy, found {settings.metric!r}")
    if settings.recipe not in FLOW_RECIPES:
        raise ValueError(f"[auto_quantize] recipe must be one of {', '.join(FLOW_RECIPES)}, found {settings.recipe!r}")
    if not settings.widths or not set(settings.widths) <= set(range(1, 9)):
        raise ValueError(f"[auto_quantize] widths must be bit widths from 1 to 8, found {settings.widths}")
    if budget is not None and not budget > 0:
        raise ValueError(f"[auto_quantize] budget must be a positive number of seconds, found {budget}")
    two = 2 * settings.window
    least = {"calibration_tokens": settings.window, "gradient_tokens": 2, "evaluation_tokens": two}
    if settings.probe_tokens < settings.evaluation_tokens:
        least["probe_tokens"] = two
    for name, count in least.items():
        if getattr(settings, name) < count:
            raise ValueError(f"[auto_quantize] {name} must be at least {count}, found {getattr(settings, name)}")


def _check_positions(model: FloatModel, window: int) -> None:
    """Raises ValueError where a window is longer than the model's texts may be."""
    config = model.checkpoint.config or {}
    inner = config.get("text_config")
    most = (inner if isinstance(inner, dict) else config).get("max_position_embeddings")
    if isinstance(most, int) and 0 < most < window:
        raise ValueError(f"[auto_quantize] window must be at most the {most} positions of the model, found {window}")


def _check_vocabulary(model: FloatModel, ids: Sequence[int], role: str) -> None:
    """Raises ValueError where the embedding has no row for a token."""
    matrix = model.matrices[0]
    if matrix.kind == "embedding" and not 0 <= min(ids) <= max(ids) < matrix.out_features:
        raise ValueError(
            f"[auto_quantize] expected token ids of 0 to {matrix.out_features - 1}, but the {role} text has "
            f"{min(ids)} to {max(ids)}"
        )


@contextmanager
def _search_folder(out: Path | None, given: str | Path | None) -> Iterator[Path]:
    if given is not None or out is not None:
        folder = Path(given) if given is not None else out.with_name(f"{out.name}.search")  # type: ignore[union-attr]
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    temporary = Path(tempfile.mkdtemp(prefix="tmac-search-"))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenizer(path: Any) -> Any:
    """The tokenizer beside a model, or None."""
    try:
        return load_tokenizer(path)
    except (OSError, ValueError):
        return None
