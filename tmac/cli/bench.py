"""`tmac bench`: how fast a model reads prompts and generates, beside what the memory allows.

The options and the names of the tests are llama-bench's: pp128 is a prompt of 128 tokens, tg32 are 32 generated ones.
With --draft or --memory-limit it writes texts instead: `bench_draft`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli import bench_draft
from tmac.cli.arguments import CACHE_TYPES, TERNARY, bits, counts, positive, types
from tmac.cli.engine_options import CHECKPOINT, add_speed_options
from tmac.cli.errors import CommandError
from tmac.cli.info import check_overrides
from tmac.cli.speculation import add_plot_option
from tmac.cli.tables import print_table

if TYPE_CHECKING:
    from tmac import QuantSpec
    from tmac.runtime.speed import Result, Subject

SYNTHETIC = ("bits", "group_size", "sym")
STORED = ("embedding_bits", "requantize")
HEAD_BITS, HEAD_GROUP = 8, 32
DEFAULTS = (128, 32, 0)  # of a prompt, of generated tokens, before both
NUMBERS = ("threads", "tokens/s", "min..max", "MB/token", "GB/s", "limit", "share", "core-ms/token", "J/token")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac bench`."""
    parser.add_argument("path", nargs="?", metavar="PATH", help=CHECKPOINT)
    parser.add_argument("--shape", metavar="NAME", help="random weights of a known model instead: llama-2-7b, ...")
    parser.add_argument("-p", "--n-prompt", type=counts, metavar="N,...", help="prompts (default: 128)")
    parser.add_argument(
        "-n", "--n-gen", type=counts, metavar="N,...", help="generated tokens (default: 32, of texts 128)"
    )
    parser.add_argument("-d", "--n-depth", type=counts, metavar="N,...", help="tokens before each test (default: 0)")
    parser.add_argument("-t", "--threads", type=counts, metavar="N,...", help="threads (default: as many as tmac uses)")
    parser.add_argument("-r", "--repetitions", type=positive, default=5, help="timed runs of a test (default: 5)")
    parser.add_argument(
        "--cache-type", choices=CACHE_TYPES, default="f16", help="type of keys and values (default: f16)"
    )
    parser.add_argument("--chunk-size", type=positive, default=256, help="prompt tokens of a pass (default: 256)")
    parser.add_argument("--profile", action="store_true", help="also print where the time of a pass goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--head-bits", type=bits, help="bits of the head (default with --shape: 8, else it stays as it is)"
    )
    stored = parser.add_argument_group("with PATH", "how a checkpoint is loaded")
    stored.add_argument("--embedding-bits", type=positive, help="bits of a float embedding, and of a tied head")
    stored.add_argument("--requantize", type=types, metavar="TYPE,...", help="inexact GGUF types to round, or all")
    random = parser.add_argument_group("with --shape", "how the random weights are made")
    random.add_argument("--bits", type=bits, help="1 to 8, or ternary (default: 4)")
    random.add_argument(
        "--group-size", type=int, help="columns that share a scale, -1 for the whole row (default: 128)"
    )
    random.add_argument("--sym", action="store_true", default=None, help="centre every group on zero")
    texts = parser.add_argument_group("texts", "with PATH: plain decoding beside a draft, or under a memory limit")
    add_speed_options(texts)
    texts.add_argument(
        "--prompt-file",
        action="append",
        type=Path,
        metavar="F",
        help="a text to go on with; may be repeated (default: prose, code and a file to copy)",
    )
    add_plot_option(texts)


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table, and the profile, or one JSON object."""
    check_overrides()
    if bench_draft.is_wanted(args):
        return bench_draft.run(args)
    from tmac.runtime.speed import ReadProbe, cases, measure
    from tmac.threads import get_num_threads

    for name in ("prompt_file", "stats_plot"):
        if getattr(args, name) is not None:
            raise CommandError(f"--{name.replace('_', '-')} needs --draft or --memory-limit")
    given = zip((args.n_prompt, args.n_gen, args.n_depth), DEFAULTS, strict=True)
    wanted = cases(*([default] if counted is None else counted for counted, default in given))
    threads = args.threads or [get_num_threads()]
    if not wanted or not all(threads):
        raise CommandError("nothing to measure: expected a positive number in -p or -n, and in -t")
    try:
        about, subject = _subject(args, max(test.depth + test.tokens for test in wanted))
        pairs = [(test, count) for count in threads for test in wanted]
        results = measure([subject], pairs, args.repetitions, ReadProbe())
        profiles = [_profile(subject, result) for result in results] if args.profile else []
    except ValueError as error:
        raise CommandError(str(error)) from error
    if args.json:
        rows = [result.to_dict() for result in results]
        print(json.dumps({**about, "results": rows, "profiles": profiles}, indent=2))
        return 0
    _print_results(about, results)
    for profile in profiles:
        _print_profile(profile)
    return 0


def _subject(args: argparse.Namespace, positions: int) -> tuple[dict[str, Any], Subject]:
    """What is measured, in words, and the model. Raises ValueError for an unknown shape or a spec without meaning."""
    if (args.path is None) == (args.shape is None):
        raise CommandError("expected the path of a checkpoint, or --shape NAME")
    others, place = (STORED, "PATH") if args.path is None else (SYNTHETIC, "--shape")
    given = [name for name in others if getattr(args, name) is not None]
    if given:
        raise CommandError(f"--{given[0].replace('_', '-')} is for {place}")
    return _synthetic(args, positions) if args.path is None else _checkpoint(args)


def _checkpoint(args: argparse.Namespace) -> tuple[dict[str, Any], Subject]:
    from tmac import _core
    from tmac.runtime.loading import load_weights, open_model
    from tmac.runtime.speed import Subject

    if args.head_bits == TERNARY:
        raise CommandError(f"--head-bits {TERNARY} is for --shape")
    opened = open_model(args.path, requantize=args.requantize or ())
    config = opened.description.config
    builder: Any = _core.ModelBuilder(config)
    load_weights(opened, builder, head_bits=args.head_bits, embedding_bits=args.embedding_bits)
    model = builder.build()
    return _about(Path(args.path).name, model, args, None), Subject(model, config, args.cache_type, args.chunk_size)


def _synthetic(args: argparse.Namespace, positions: int) -> tuple[dict[str, Any], Subject]:
    from tmac.runtime.speed import Subject
    from tmac.runtime.synthetic import shape_description, synthetic_model

    description = shape_description(args.shape)
    longer = {"context_length": max(positions, description.config["context_length"])}
    description = replace(description, config={**description.config, **longer})
    group_size = 128 if args.group_size is None else args.group_size
    spec = spec_of(4 if args.bits is None else args.bits, group_size, bool(args.sym))
    head_bits = HEAD_BITS if args.head_bits is None else args.head_bits
    head_spec = spec_of(head_bits, HEAD_GROUP, True)
    model = synthetic_model(description, spec, head_spec)
    specs = {"layers": spec.to_dict(), "head": head_spec.to_dict()}
    return _about(args.shape, model, args, specs), Subject(model, description.config, args.cache_type, args.chunk_size)


def spec_of(width: int | str, group_size: int, sym: bool) -> QuantSpec:
    """A spec as the other commands make it; a ternary weight of one scale a row takes int8 tokens, as BitNet's do."""
    from tmac import QuantSpec

    if width == TERNARY:
        return QuantSpec(2, group_size, "ternary", activation="token" if group_size == -1 else "group")
    return QuantSpec(int(width), group_size, zero_point="fixed" if sym else "offset")


def _about(name: str, model: Any, args: argparse.Namespace, specs: Mapping[str, Any] | None) -> dict[str, Any]:
    import tmac
    from tmac import _core

    return {
        "version": tmac.__version__,
        "cpu": _core.cpu_model(),
        "model": name,
        "family": model.family,
        "model_size": model.weight_bytes,
        "specs": specs,
        "cache_type": args.cache_type,
        "chunk_size": args.chunk_size,
    }


def _profile(subject: Subject, result: Result) -> dict[str, Any]:
    profile = subject.profile(result.test, result.threads)
    return {"test": result.test.name, "n_threads": result.threads, "seconds_per_pass": profile}


def _print_results(about: Mapping[str, Any], results: Sequence[Result]) -> None:
    counted = any(result.joules is not None for result in results)
    head = ["test", *NUMBERS[: None if counted else -1]]
    rows = [_row(result)[: len(head)] for result in results]
    size = f"{about['model_size'] / 1e6:.1f} MB"
    title = f"{about['model']}, {about['family']}, {size}, cache {about['cache_type']}, {about['cpu']}"
    print_table(title, head, rows, NUMBERS)


def _row(result: Result) -> list[str]:
    facts = result.to_dict()
    limited = result.limit is not None
    return [
        result.test.name,
        str(result.threads),
        f"{facts['median_ts']:.2f}",
        f"{facts['min_ts']:.2f}..{facts['max_ts']:.2f}",
        f"{facts['bytes_per_token'] / 1e6:.1f}" if limited else "-",
        f"{facts['read_gb_per_s']:.1f}",
        f"{facts['limit_ts']:.2f}" if limited else "-",
        f"{facts['share_of_limit']:.3f}" if limited else "-",
        f"{1e3 * facts['core_seconds_per_token']:.2f}",
        "-" if facts["joules_per_token"] is None else f"{facts['joules_per_token']:.3f}",
    ]


def _print_profile(profile: Mapping[str, Any]) -> None:
    seconds = profile["seconds_per_pass"]
    total = seconds["total"] or 1.0
    rows = [[stage, f"{1e6 * value:.1f}", f"{100 * value / total:.1f}"] for stage, value in seconds.items() if value]
    threads = profile["n_threads"]
    title = f"{profile['test']}, {threads} thread{'' if threads == 1 else 's'}: a pass"
    print_table(title, ["stage", "us", "%"], rows, ["us", "%"])
