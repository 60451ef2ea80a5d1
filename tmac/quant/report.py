"""What a search has found, as JSON and as tables."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tmac.quant.codes_cache import write_atomically
from tmac.quant.options import spec_text
from tmac.quant.planner import zip_plan
from tmac.quant.search import Goal, Outcome

MB = 1e6
NUMBER = re.compile(r"\.(\d+)\.")
JSON_NAME, PLOT_NAME = "report.json", "report.png"


class Table(NamedTuple):
    """Rows below a title and a head."""

    title: str
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def make_report(
    goal: Goal, outcome: Outcome, rule: str, trials: Sequence[Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything about a search, as plain JSON values.

    Args:
        goal: what was wanted.
        outcome: what was found.
        rule: that decided about it.
        trials: entries of the log.
        about: of the model, the texts and the time.
    """
    plan, measured = outcome.plan, outcome.measured["measured"]
    return {
        **about,
        "goal": {"max_loss": goal.max_loss, "bits": goal.bits},
        "rule": rule,
        "held": outcome.held,
        "reason": outcome.reason,
        "mode": outcome.mode,
        "weights": sum(matrix.weights for matrix in plan.matrices),
        "bits_per_weight": plan.bits_per_weight,
        "bytes_per_token": plan.bytes_per_token,
        "matrix_bytes": plan.size // 8,
        "loss": measured["loss"],
        "upper": measured["upper"],
        "count": measured["count"],
        "measured": measured["about"],
        "next_smaller": outcome.smaller,
        "layers": {
            matrix.name: {
                "spec": option.spec.to_dict(),
                "text": spec_text(option.spec),
                "bits_per_weight": option.size / matrix.weights,
                "weights": matrix.weights,
                "kind": matrix.kind,
                "block": matrix.block,
                "predicted_loss": option.loss,
            }
            for matrix, option in zip_plan(plan)
        },
        "trials": [_trial(entry) for entry in trials],
    }


def _trial(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("mode", "stage", "bits", "bytes_per_token", "predicted", "measured", "seconds")}


def pareto_front(trials: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials that no other one beats in size and loss, from the smallest."""
    front: list[Mapping[str, Any]] = []
    for trial in sorted(trials, key=lambda each: (each["bits"], each["measured"]["loss"])):
        if not front or trial["measured"]["loss"] < front[-1]["measured"]["loss"]:
            front.append(trial)
    return front


def comparable(trials: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The trials that were measured on the whole text, or all where none was."""
    full = [trial for trial in trials if trial["stage"] == "full"]
    return full or list(trials)


def layer_kind(name: str) -> str:
    """The name of a matrix without the number of its block: "self_attn.q_proj", "lm_head"."""
    parts = NUMBER.split(name, maxsplit=1)
    return parts[-1] if len(parts) == 3 else name


def write_json(report: Mapping[str, Any], folder: Path) -> Path:
    """Writes report.json. Raises OSError."""
    path = folder / JSON_NAME
    write_atomically(path, json.dumps(report, indent=1).encode())
    return path


def summary(report: Mapping[str, Any]) -> Iterator[str]:
    """The outcome in a few lines."""
    goal = report["goal"]
    if goal["bits"] is None:
        wanted = f"a loss of at most {_percent(goal['max_loss'])}"
        verdict = "held" if report["held"] else "MISSED: this is the best model that was found"
    else:
        wanted = f"{goal['bits']:g} bits per weight"
        verdict = "kept" if report["held"] else "MISSED: this is the smallest model"
    yield f"wanted: {wanted}; {verdict} ({report['reason']})"
    yield (
        f"size: {report['bits_per_weight']:.3f} bits per weight over all matrices, "
        f"{report['bytes_per_token'] / MB:.1f} MB read per token"
    )
    line = f"loss: {_percent(report['loss'])}, with 95 % confidence below {_percent(report['upper'])}"
    if report["upper"] == report["loss"]:
        line = f"loss: {_percent(report['loss'])}"
    yield f"{line}, on {report['count']} {report.get('counted', 'tokens')}"
    about = ", ".join(f"{key} {_number(value)}" for key, value in report["measured"].items())
    if about:
        yield f"measured: {about}"
    yield f"rule: {report['rule']}"
    for name in report.get("not_activated", ()):
        yield f"never reached by the calibration text, rounded to nearest: {name}"
    for name in report.get("left_float", ()):
        yield f"left as it is: {name}"
    for note in report.get("notes", ()):
        yield f"note: {note}"
    if report["next_smaller"]:
        entry = report["next_smaller"]
        upper = _percent(entry["measured"]["upper"])
        yield f"next smaller: {entry['bits']:.3f} bits per weight fail with {upper}"


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The bits of every kind of matrix, and all trials."""
    return [_layers_table(report["layers"]), _trials_table(report["trials"])]


def _layers_table(layers: Mapping[str, Mapping[str, Any]]) -> Table:
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, layer in layers.items():
        kinds.setdefault(layer_kind(name), []).append(layer)
    rows = []
    for kind, group in kinds.items():
        weights = sum(layer["weights"] for layer in group)
        bits = sum(layer["bits_per_weight"] * layer["weights"] for layer in group) / weights
        widths = Counter(layer["spec"]["bits"] for layer in group)
        formats = Counter(layer["text"].partition(" ")[2] for layer in group)
        most = ", ".join(f"{text} x{count}" for text, count in formats.most_common(2))
        rows.append(
            (
                kind,
                str(len(group)),
                f"{weights / MB:.2f}",
                f"{bits:.2f}",
                " ".join(f"{width}:{widths[width]}" for width in sorted(widths)),
                most,
            )
        )
    head = ("matrices", "number", "M weights", "bits per weight", "width:number", "most frequent formats")
    return Table("what was chosen", head, rows)


def _trials_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            f"{trial['bits']:.3f}",
            f"{trial['bytes_per_token'] / MB:.1f}",
            trial["mode"],
            trial["stage"],
            _percent(trial["measured"]["loss"]),
            _percent(trial["measured"]["upper"]),
            f"{trial['seconds']:.0f}",
        )
        for trial in trials
    ]
    head = ("bits per weight", "MB per token", "codes", "measured", "loss", "below (95 %)", "seconds")
    return Table("trials", head, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
