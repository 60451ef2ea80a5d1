"""`tmac bench --draft`: texts without and with a draft in one run, and that their tokens are the same."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import TERNARY
from tmac.cli.bench_prompts import PROMPTS
from tmac.cli.engine_options import load_engine, read_text, user_errors
from tmac.cli.errors import CommandError
from tmac.cli.speculation import check_stats_options, merged, save_plot, streaming, streaming_lines
from tmac.cli.tables import print_table

if TYPE_CHECKING:
    from tmac.runtime.draft_speed import Comparison

TOKENS = 128
OTHERS = ("shape", "n_prompt", "n_depth", "profile", "bits", "group_size", "sym")
NUMBERS = ("prompt", "tokens", "plain", "min..max", "drafted", "min..max ", "factor", "tokens/pass", "accepted, %")


def is_wanted(args: argparse.Namespace) -> bool:
    """Whether the options ask for texts, and not for passes of given lengths."""
    return args.draft is not None or args.memory_limit is not None


def run(args: argparse.Namespace) -> int:
    """Measures and prints a table or one JSON object."""
    import tmac
    from tmac import _core
    from tmac.runtime.draft_speed import compare

    check_stats_options(args)
    tokens, threads, prompts = _tokens(args), _threads(args), read_prompts(args.prompt_file)
    has_draft = args.draft not in (None, "none")
    loading = argparse.Namespace(**{**vars(args), "threads": threads})
    engine = load_engine(loading, chunk_size=args.chunk_size, kept_positions=0)
    try:
        with user_errors():
            results = compare(engine, prompts, max_new_tokens=tokens, repetitions=args.repetitions, draft=has_draft)
        read = streaming(engine)
    finally:
        engine.close()
    about = {
        "version": tmac.__version__,
        "cpu": _core.cpu_model(),
        "model": Path(args.path).name,
        "draft": args.draft,
        "memory_limit": args.memory_limit,
        "n_threads": threads or tmac.get_num_threads(),
        "cache_type": args.cache_type,
        "repetitions": args.repetitions,
    }
    if args.json:
        rows = [result.to_dict() for result in results]
        print(json.dumps({**about, "results": rows, "streaming": read}, indent=2))
    else:
        _print(about, results)
        print(*streaming_lines(read, {}), sep="\n", end="\n" if read else "")
    if args.stats_plot is not None:
        save_plot(args.stats_plot, {each.name: each.stats[-1] for each in results if each.stats})
    return 0


def read_prompts(paths: Sequence[Path] | None) -> dict[str, str]:
    """Texts to go on with by name: those of files, or those that come with tmac.

    Raises:
        CommandError: a file cannot be read, is empty, or has the name of another one.
    """
    if not paths:
        return dict(PROMPTS)
    found: dict[str, str] = {}
    for path in paths:
        text = read_text(path)
        if not text:
            raise CommandError(f"{path}: expected a text, found nothing")
        if path.stem in found:
            raise CommandError(f"--prompt-file {path}: expected files with different names")
        found[path.stem] = text
    return found


def _tokens(args: argparse.Namespace) -> int:
    """How many each text gets. Raises CommandError for an option that has no meaning here."""
    for name in OTHERS:
        if getattr(args, name) not in (None, False):
            raise CommandError(f"--{name.replace('_', '-')} is not for --draft and --memory-limit, which write texts")
    if args.path is None:
        raise CommandError("--draft and --memory-limit need the path of a checkpoint")
    if args.head_bits == TERNARY:
        raise CommandError(f"--head-bits {TERNARY} is for --shape")
    if args.n_gen is None:
        return TOKENS
    if len(args.n_gen) != 1 or args.n_gen[0] < 2:
        raise CommandError("--n-gen: with --draft or --memory-limit expected one number, at least 2")
    return int(args.n_gen[0])


def _threads(args: argparse.Namespace) -> int | None:
    if args.threads is None:
        return None
    if len(args.threads) != 1 or not args.threads[0]:
        raise CommandError("--threads: with --draft or --memory-limit expected one positive number")
    return int(args.threads[0])


def _print(about: Mapping[str, Any], results: Sequence[Comparison]) -> None:
    drafts = {each.draft for result in results for each in result.stats}
    draft = f", draft {', '.join(sorted(drafts))}" if drafts else ""
    limit = f", memory limit {about['memory_limit']}" if about["memory_limit"] else ""
    threads = f"{about['n_threads']} thread{'' if about['n_threads'] == 1 else 's'}"
    title = f"{about['model']}{draft}{limit}, cache {about['cache_type']}, {threads}, {about['cpu']}"
    head = ["text", *NUMBERS] if drafts else ["text", *NUMBERS[:4]]
    print_table(title, head, [_row(result) for result in results], NUMBERS)
    if drafts:
        runs = 2 * (about["repetitions"] + 1)
        print(f"plain, drafted: tokens per second; the same tokens in all {runs} runs of each text")


def _row(result: Comparison) -> list[str]:
    row = [result.name, str(result.prompt_tokens), str(len(result.token_ids)), *_speeds(result.plain)]
    if not result.stats:
        return row
    stats = merged(result.stats)
    drafted = sum(stats.drafted)
    accepted = f"{100 * sum(stats.accepted) / drafted:.0f}" if drafted else "-"
    return [*row, *_speeds(result.drafted), f"{result.factor:.2f}", f"{stats.tokens_per_pass:.2f}", accepted]


def _speeds(samples: Sequence[float]) -> tuple[str, str]:
    return f"{statistics.median(samples):.2f}", f"{min(samples):.2f}..{max(samples):.2f}"
