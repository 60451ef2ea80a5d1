"""`tmac tune`: measures which kernels are the fastest on this machine, and keeps the answer for later."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tmac.cli.arguments import TERNARY, bits, positive
from tmac.cli.errors import CommandError
from tmac.cli.info import check_overrides
from tmac.cli.tables import print_table

if TYPE_CHECKING:
    from tmac import QuantSpec
    from tmac.tuner import TunedShape, TuningReport

SHAPES = [(4096, 4096), (11008, 4096), (4096, 11008)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac tune`."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, metavar="FILE.gguf", help="the shapes of this model's linear layers")
    what.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="NxK", help="rows x columns (default: those of a 7B Llama)"
    )
    parser.add_argument("--bits", nargs="+", type=bits, default=[4], help="1 to 8, or ternary (default: 4)")
    parser.add_argument("--group-size", type=int, default=32, help="columns that share a scale (default: %(default)s)")
    parser.add_argument("--sym", action="store_true", help="centre every group on zero, without an offset")
    parser.add_argument("--head-bits", type=int, default=8, help="bits of a model's output head (default: %(default)s)")
    parser.add_argument("--threads", type=positive, help="threads to measure with (default: as many as tmac uses)")
    parser.add_argument("--force", action="store_true", help="measure again what is known")
    parser.add_argument("--show", action="store_true", help="print every candidate with its times")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if rows.isdecimal() and columns.isdecimal() and int(rows) and int(columns):
        return int(rows), int(columns)
    raise argparse.ArgumentTypeError(f"expected ROWSxCOLUMNS, 4096x4096 for instance, found {text!r}")


def run(args: argparse.Namespace) -> int:
    """Tunes and prints the choices, a table of candidates per shape, or one JSON object."""
    check_overrides()
    from tmac.tuner import tune

    try:
        report = tune(list(_shapes(args)), args.threads, force=args.force)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if args.json:
        print(json.dumps(report.to_dict(), indent=2))
    elif args.show:
        for shape in report.shapes:
            heads = _heads(shape)
            print_table(_title(shape), ["decode", "prompt", *heads, ""], _candidates(shape), heads)
    else:
        print_table(_summary(report), ["shape", "decode", "prompt"], [_chosen(shape) for shape in report.shapes])
    return 0


def _shapes(args: argparse.Namespace) -> Iterator[tuple[QuantSpec, int, int]]:
    for width in args.bits:
        spec = _spec(width, args)
        if args.model:
            yield from _model_shapes(args.model, spec, _spec(args.head_bits, args))
        else:
            yield from ((spec, rows, columns) for rows, columns in args.shapes or SHAPES)


def _spec(width: int | str, args: argparse.Namespace) -> QuantSpec:
    """What `tmac.QuantConfig` makes of the same options."""
    from tmac import QuantSpec

    if width == TERNARY:
        return QuantSpec(2, args.group_size, "ternary")
    return QuantSpec(int(width), args.group_size, zero_point="fixed" if args.sym else "offset")


def _model_shapes(path: Path, spec: QuantSpec, head_spec: QuantSpec) -> Iterator[tuple[QuantSpec, int, int]]:
    """The linear layers of a llama file; a head that shares its weight with the embedding counts as one."""
    try:
        from tmac.formats.gguf import GgufFile, llama_name
    except ImportError as error:
        raise CommandError(str(error)) from error
    found = {llama_name(name): info.shape for name, info in GgufFile(path).tensors.items()}
    head = found.get("lm_head.weight", found.get("model.embed_tokens.weight"))
    layers = [shape for name, shape in found.items() if name and name.endswith("_proj.weight") and len(shape) == 2]
    if head is None or not layers:
        raise CommandError(f"{path}: expected the tensors of a llama model, found none of its linear layers")
    yield from ((spec, rows, columns) for rows, columns in layers)
    yield head_spec, head[0], head[1]


def _summary(report: TuningReport) -> str:
    measured = sum(shape.measured for shape in report.shapes)
    threads = report.machine.threads
    plural = "" if threads == 1 else "s"
    return f"{report.machine.cpu}, {threads} thread{plural}: {measured} of {len(report.shapes)} measured now"


def _name(shape: TunedShape) -> str:
    spec = shape.spec
    width = TERNARY if spec.codebook == "ternary" else f"W{spec.bits}"
    return f"{shape.out_features}x{shape.in_features} {width} group {spec.group_size} {spec.zero_point}"


def _title(shape: TunedShape) -> str:
    return f"{_name(shape)}{'' if shape.measured else ' (measured before)'}"


def _chosen(shape: TunedShape) -> list[str]:
    return [_name(shape), shape.choice.decode, shape.choice.prompt]


def _heads(shape: TunedShape) -> list[str]:
    return [f"m={tokens}, us" for tokens in shape.choice.times[0].seconds] if shape.choice.times else []


def _candidates(shape: TunedShape) -> list[list[str]]:
    chosen = (shape.choice.decode, shape.choice.prompt)
    return [
        [
            each.decode,
            each.prompt,
            *(_microseconds(seconds) for seconds in each.seconds.values()),
            "chosen" if (each.decode, each.prompt) == chosen else "",
        ]
        for each in shape.choice.times
    ]


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f}" if seconds < 1e-4 else f"{seconds * 1e6:.0f}"
