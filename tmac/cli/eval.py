"""`tmac eval`: perplexity, distance from the float model, and multiple choice."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import positive
from tmac.cli.engine_options import add_loading_options, user_errors
from tmac.cli.errors import CommandError
from tmac.cli.tables import print_table

if TYPE_CHECKING:
    from tmac.evaluation.evaluate import ChoicesResult, TextResult
    from tmac.evaluation.scorer import Scorer

PATHS = ("auto", "engine", "hf")
BOS = {"auto": None, "yes": True, "no": False}
NUMBERS = ("model", "reference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac eval`."""
    add_loading_options(parser)
    parser.add_argument("--path", dest="way", choices=PATHS, default="auto", help="what evaluates (default: auto)")
    what = parser.add_argument_group("what is measured")
    what.add_argument("--text", metavar="SOURCE", help="a text, a .jsonl file, or package:NAME/TEXT")
    what.add_argument("--choices", metavar="SOURCE", help="questions: a .jsonl file, or package:evals/logiqa")
    what.add_argument("--reference", metavar="PATH", help="the float model; a quantized one is turned into floats")
    what.add_argument("--kl", action="store_true", help="also the divergence from the reference, and agreement")
    what.add_argument("--max-tokens", type=positive, metavar="N", help="of the text (default: all)")
    what.add_argument("--max-questions", type=positive, metavar="N", help="of the choices (default: all)")
    what.add_argument("--window", type=positive, default=512, help="tokens that are read together (default: 512)")
    what.add_argument("--bos", choices=tuple(BOS), default="auto", help="begin with the model's token for that")
    what.add_argument("--confidence", type=_confidence, default=0.95, help="of each bound (default: 0.95)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table and the rule behind its bounds, or one JSON object."""
    if args.text is None and args.choices is None:
        raise CommandError("nothing to measure: expected --text or --choices")
    if args.kl and (args.reference is None or args.text is None):
        raise CommandError("--kl needs --reference and --text")
    with user_errors():
        report, text, choices = _measure(args)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report, text, choices, args.confidence)
    return 0


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], TextResult | None, ChoicesResult | None]:
    from tmac.cli.eval_models import open_reference, open_scorer
    from tmac.evaluation.choices import load_questions
    from tmac.evaluation.evaluate import check_same_tokenizer, evaluate_choices, evaluate_text, text_ids, to_dict
    from tmac.evaluation.texts import load_documents
    from tmac.tuning_cache import cache_folder

    options: dict[str, Any] = {"bos": BOS[args.bos], "confidence": args.confidence, "progress": None}
    questions = None if args.choices is None else load_questions(args.choices, args.max_questions)
    if args.text is not None:
        load_documents(args.text, max_characters=1)  # a wrong name is told before a model is loaded
    text = choices = None
    with open_scorer(args) as (scorer, way):
        reference: Scorer | None = None
        if args.reference is not None:
            reference = open_reference(args)
            check_same_tokenizer(reference, scorer)
        if args.text is not None:
            ids = text_ids(scorer, args.text, args.max_tokens)
            folder = cache_folder() / "losses"
            text = evaluate_text(scorer, ids, reference, kl=args.kl, window=args.window, cache=folder, **options)
        if questions is not None:
            choices = evaluate_choices(scorer, questions, reference, **options)
    report = {
        "model": str(args.path),
        "way": way,
        "reference": args.reference,
        "confidence": args.confidence,
        "text_source": args.text,
        "text": None if text is None else to_dict(text),
        "choices_source": args.choices,
        "choices": None if choices is None else to_dict(choices),
    }
    return report, text, choices


def _print(report: dict[str, Any], text: TextResult | None, choices: ChoicesResult | None, confidence: float) -> None:
    sure = f"{100 * confidence:g} %"
    rows = [*_text_rows(text, sure), *_choice_rows(choices, sure)]
    shown = [name for name in ("reference", "difference") if any(name in row for row in rows)]
    head = ["", "model", *shown]
    title = f"{report['model']} ({report['way']})"
    if report["reference"] is not None:
        title += f" beside {report['reference']}"
    print_table(title, head, [[row.get(name, "") for name in head] for row in rows], NUMBERS)
    for line in _notes(report, text, choices, sure):
        print(line)


def _text_rows(text: TextResult | None, sure: str) -> Iterator[dict[str, str]]:
    if text is None:
        return
    row = {"": "perplexity", "model": f"{text.perplexity:.4f}"}
    if text.reference_perplexity is not None:
        row["reference"] = f"{text.reference_perplexity:.4f}"
    if text.ratio is not None:
        row["difference"] = f"{_percent(text.ratio.ratio)} (with {sure}: at most {_percent(text.ratio.upper)})"
    yield row
    if text.mean_kl is not None and text.top1 is not None:
        yield {"": "KL divergence, nats per token", "model": f"{text.mean_kl:.5f}"}
        yield {"": "same likeliest token", "model": f"{100 * text.top1:.2f} %"}


def _choice_rows(choices: ChoicesResult | None, sure: str) -> Iterator[dict[str, str]]:
    if choices is None:
        return
    row = {"": "right answers", "model": f"{100 * choices.accuracy:.2f} %"}
    other = {"": "right answers, per byte", "model": f"{100 * choices.accuracy_norm:.2f} %"}
    if choices.reference_accuracy is not None and choices.reference_accuracy_norm is not None:
        row["reference"] = f"{100 * choices.reference_accuracy:.2f} %"
        other["reference"] = f"{100 * choices.reference_accuracy_norm:.2f} %"
    if choices.difference is not None and choices.test is not None:
        least = f"at least {100 * choices.difference.lower:+.2f}"
        row["difference"] = f"{100 * choices.difference.difference:+.2f} points (with {sure}: {least}; p = "
        row["difference"] += f"{choices.test.p_value:.3g})"
    yield row
    yield other


def _notes(report: dict[str, Any], text: TextResult | None, choices: ChoicesResult | None, sure: str) -> Iterator[str]:
    """What was measured, and the rules behind the bounds."""
    if text is not None:
        begin = "with" if text.bos else "without"
        yield (
            f"Text: {report['text_source']}, {text.tokens} predicted tokens in {text.windows} windows of "
            f"{text.window}, {begin} BOS."
        )
        if text.ratio is not None:
            yield (
                f"Rule: losses of the same tokens, paired by window; one-sided {sure} bound of the ratio of "
                f"perplexities by Student's t over {text.ratio.windows} windows."
            )
        elif text.bounds is not None:
            low, high = text.bounds.lower, text.bounds.upper
            yield (
                f"Other text of this kind: above {low:.4f} and below {high:.4f}, each with {sure} (Student's t over "
                "windows)."
            )
    if choices is not None:
        yield f"Questions: {report['choices_source']}, {choices.questions}; the likeliest choice is the answer."
        if choices.test is not None:
            yield (
                f"Rule: McNemar's exact test on {choices.test.only_first} questions that only the reference answers "
                f"right and {choices.test.only_second} that only the model does; one-sided {sure} bound after Agresti "
                "and Min."
            )


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.3f} %"


def _confidence(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if 0.5 < value < 1:
        return value
    raise argparse.ArgumentTypeError(f"expected a number above 0.5 and below 1, found {text!r}")
