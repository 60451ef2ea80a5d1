"""`tmac quantize`: finds the smallest model whose loss stays under a bound, or the best one of a size."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import counts, positive
from tmac.cli.errors import CommandError

if TYPE_CHECKING:
    from tmac.hf.auto import AutoResult

MISSED = 3
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac quantize`."""
    parser.add_argument("source", metavar="IN", help="a float model: a folder, a file, or the id of a repository")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make; OUT.search has the log")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--max-loss", type=_share, metavar="1%", help="of the perplexity (default: 1%%)")
    goal.add_argument("--bits", type=_number, metavar="3.2", help="bits per weight, for the best model of this size")
    parser.add_argument("--calibration", metavar="TEXT", help="a text file, .jsonl, or package:NAME")
    parser.add_argument("--text", metavar="TEXT", help="the held-out text, another one")
    parser.add_argument("--questions", metavar="FILE", help="multiple choice: accuracy is the metric, not perplexity")
    parser.add_argument("--budget", type=_seconds, metavar="20m", help="time for the search: 90s, 20m, 2h")
    parser.add_argument("--fresh", action="store_true", help="discard the log of an earlier search")
    parser.add_argument("--force", action="store_true", help="replace OUT, where it is a checkpoint of this format")
    parser.add_argument("--report", type=Path, metavar="DIR", help="also write report.json and report.png there")
    parser.add_argument("--search", type=Path, metavar="DIR", help="log and caches (default: OUT.search)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    more = parser.add_argument_group("how it searches")
    more.add_argument("--recipe", choices=("gptq", "rtn", "hqq", "awq", "signround"), default="gptq")
    more.add_argument("--widths", type=counts, metavar="2,3,4", help="bit widths to choose from (default: 1 to 6, 8)")
    more.add_argument("--sequential", action="store_true", help="also try low-bit inputs, block by block")
    more.add_argument("--scorer", choices=("auto", "engine", "hf"), default="auto", help="what measures")
    for name, about in (
        ("calibration-tokens", "for statistics"),
        ("gradient-tokens", "for sensitivities"),
        ("evaluation-tokens", "of the held-out text"),
        ("probe-tokens", "of it for first looks"),
        ("window", "that texts are cut into"),
    ):
        more.add_argument(f"--{name}", type=positive, metavar="N", help=f"tokens {about}")


def run(args: argparse.Namespace) -> int:
    """Searches and prints the report; 3 where the bound was missed."""
    from tmac.formats import FormatError

    try:
        from tmac.hf.auto import auto_quantize
    except ImportError as error:
        text = str(error)
        raise CommandError(text if "tmac-cpu[" in text else f"{text}; pip install 'tmac-cpu[hf]'") from error

    numbers = ("calibration_tokens", "gradient_tokens", "evaluation_tokens", "probe_tokens", "window", "widths")
    options = {name: getattr(args, name) for name in numbers if getattr(args, name) is not None}
    try:
        result = auto_quantize(
            args.source,
            args.out,
            max_loss=args.max_loss,
            bits=args.bits,
            calibration=args.calibration,
            text=args.text,
            metric="perplexity" if args.questions is None else "accuracy",
            questions=args.questions,
            budget=args.budget,
            resume=not args.fresh,
            force=args.force,
            search_folder=args.search,
            recipe=args.recipe,
            sequential=args.sequential,
            scorer=args.scorer,
            **options,
        )
    except FormatError:
        raise
    except ValueError as error:
        raise CommandError(str(error)) from error
    if args.report is not None:
        _copy_report(result, args.report)
    if args.json:
        print(json.dumps(result.report, indent=1))
    else:
        _print(result)
    return 0 if result.held else MISSED


def _print(result: AutoResult) -> None:
    from tmac.cli.tables import print_table
    from tmac.quant.report import summary, tables

    report = result.report
    for table in tables(report):
        numbers = [name for name in table.head if name not in ("matrices", "codes", "measured")]
        print_table(table.title, table.head, table.rows, numbers)
    print(f"{report['model']} -> {report['out']}")
    print(*summary(report), sep="\n")
    print(f"report: {result.search_folder}")


def _copy_report(result: AutoResult, folder: Path) -> None:
    from tmac.quant.report import write_json
    from tmac.quant.report_plot import write_plot

    folder.mkdir(parents=True, exist_ok=True)
    write_json(result.report, folder)
    write_plot(result.report, folder)


def _share(text: str) -> float:
    """The value of "1%" or "0.01"."""
    number = text.strip()
    value = _number(number.removesuffix("%").strip())
    return value / 100 if number.endswith("%") else value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text!r}")
    return value


def _seconds(text: str) -> float:
    """Seconds of "90s", "20m" or "2h"; a bare number is seconds."""
    number = text.strip().lower()
    unit: Any = UNITS.get(number[-1:])
    return _number(number[:-1]) * unit if unit else _number(number)
