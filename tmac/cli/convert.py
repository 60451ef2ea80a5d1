"""`tmac convert`: writes any supported checkpoint in tmac's own format.

Quantized checkpoints keep their numbers; a float one is rounded to the nearest code with the options that say how.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import TERNARY, bits, types
from tmac.cli.errors import CommandError

if TYPE_CHECKING:
    from tmac import QuantSpec
    from tmac.formats import Checkpoint
    from tmac.formats.tmac_writer import Written

MB = 1e6
ROUNDING = ("bits", "group_size", "sym", "head_bits", "embedding_bits")
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac convert`."""
    parser.add_argument("source", type=Path, metavar="IN", help="a folder, a safetensors file or a GGUF file")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("--force", action="store_true", help="replace OUT, where it is a checkpoint of this format")
    parser.add_argument(
        "--requantize",
        type=types,
        default=(),
        metavar="TYPE,...",
        help="GGUF types without an exact form to round, IQ4_XS for instance, or all",
    )
    float_input = parser.add_argument_group("float checkpoints", "how their matrices are rounded")
    float_input.add_argument("--bits", type=bits, help="1 to 8, or ternary")
    float_input.add_argument("--group-size", type=int, help="columns that share a scale (default: 32)")
    float_input.add_argument("--sym", action="store_true", default=None, help="centre every group on zero")
    float_input.add_argument("--head-bits", type=bits, help="bits of the output head (default: it stays as it is)")
    float_input.add_argument("--embedding-bits", type=bits, help="bits of the embedding (default: it stays as it is)")
    parser.add_argument(
        "--max-shard-size", type=_size, default=5_000_000_000, metavar="SIZE", help="of a file (default: 5GB)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _size(text: str) -> int:
    """Bytes; "5GB" and "500 MB" are understood as Hugging Face does."""
    number, unit = text.strip(), 1.0
    for name, factor in UNITS.items():
        if text.strip().upper().endswith(name):
            number, unit = text.strip()[: -len(name)].strip(), factor
    try:
        nbytes = float(number) * unit
    except ValueError:
        nbytes = 0.0
    if not 1 <= nbytes < 2**63:
        raise argparse.ArgumentTypeError(f"expected a size, 5GB for instance, found {text!r}")
    return int(nbytes)


def run(args: argparse.Namespace) -> int:
    """Converts and prints what was done, or one JSON object."""
    from tmac.formats import FormatError, open_checkpoint
    from tmac.formats.tmac_writer import write_checkpoint

    started = time.perf_counter()
    try:
        source = open_checkpoint(args.source, requantize=args.requantize)
    except FormatError:
        raise
    except ValueError as error:
        raise CommandError(str(error)) from error
    checkpoint = _rounded(source, args)
    written = write_checkpoint(
        checkpoint, args.out, force=args.force, max_shard_bytes=args.max_shard_size, progress=_progress
    )
    facts = _facts(source, written, time.perf_counter() - started)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(_lines(facts)))
    return 0


def _progress(items: Iterator[Any], total: int) -> Iterator[Any]:
    from tmac.progress import with_progress

    return with_progress(_Sized(items, total), "weights", None)


class _Sized:
    """An iterator whose length is known, for the bar."""

    def __init__(self, items: Iterator[Any], total: int) -> None:
        self.items, self.total = items, total

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[Any]:
        return self.items


def _rounded(source: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    given = [name for name in ROUNDING if getattr(args, name) is not None]
    if source.layers:
        if given:
            option = f"--{given[0].replace('_', '-')}"
            raise CommandError(f"{args.source} is quantized already ({source.format}): {option} is for float models")
        return source
    if args.bits is None:
        raise CommandError(f"{args.source} is a float model: say how to round it, with --bits 4 for instance")
    from tmac.formats.float_rounding import Rounding, rounded

    spec = _spec(args.bits, args)
    head, embedding = (None if width is None else _spec(width, args) for width in (args.head_bits, args.embedding_bits))
    return rounded(source, Rounding(spec, head, embedding))


def _spec(width: int | str, args: argparse.Namespace) -> QuantSpec:
    from tmac import QuantSpec

    group_size = 32 if args.group_size is None else args.group_size
    try:
        if width == TERNARY:
            return QuantSpec(2, group_size, "ternary")
        return QuantSpec(int(width), group_size, zero_point="fixed" if args.sym else "offset")
    except ValueError as error:
        raise CommandError(str(error)) from error


def _facts(source: Checkpoint, written: Written, seconds: float) -> dict[str, Any]:
    from tmac.cli.describe import architecture, groups_of, tokenizer_file

    return {
        "source": str(source.path),
        "out": str(written.path),
        "format": source.format,
        "architecture": architecture(source),
        "layers": len(written.layers),
        "specs": groups_of({name: entry.spec for name, entry in written.layers.items()}),
        "bytes_before": source.nbytes,
        "bytes_after": written.nbytes,
        "seconds": seconds,
        "weights_seconds": written.seconds,
        "weights_mb_per_second": source.nbytes / MB / written.seconds,
        "peak_memory_bytes": _peak_memory(),
        "tokenizer": tokenizer_file(written.companions),
        "files": ["config.json", *written.companions],
        "left_out": written.left_out,
        "requantized": dict(source.errors),
    }


def _peak_memory() -> int | None:
    """The largest resident size that this process had; None where the system does not say."""
    try:  # Linux; ru_maxrss there starts at the peak of the process that started this one
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError, ValueError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _lines(facts: dict[str, Any]) -> Iterable[str]:
    yield f"{facts['source']}: {facts['format']}, {facts['architecture'] or 'unknown architecture'}"
    yield f"{facts['layers']} quantized layers:"
    for group in facts["specs"]:
        yield f"  {group['count']:5} x {group['spec']}"
    before, after = facts["bytes_before"] / MB, facts["bytes_after"] / MB
    yield f"{before:.1f} MB -> {after:.1f} MB in {facts['out']}"
    yield f"tokenizer: {facts['tokenizer'] or 'none in the source'}"
    for name, why in facts["left_out"].items():
        yield f"left out:  {name}: {why}"
    if facts["requantized"]:
        errors = facts["requantized"].values()
        yield f"rounded:   {len(errors)} layers, relative error {min(errors):.4f} to {max(errors):.4f}"
    peak = facts["peak_memory_bytes"]
    memory = f", {peak / MB:.0f} MB of memory at most" if peak else ""
    rate = f"the weights {facts['weights_seconds']:.1f} s, {facts['weights_mb_per_second']:.0f} MB/s"
    yield f"{facts['seconds']:.1f} s ({rate}){memory}"
