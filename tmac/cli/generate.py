"""`tmac generate`: goes on with a text, or answers a question, with any supported checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import natural
from tmac.cli.engine_options import (
    add_generation_options,
    add_loading_options,
    generation_options,
    load_engine,
    read_text,
    speeds,
    user_errors,
)
from tmac.cli.errors import CommandError
from tmac.cli.speculation import StatsReport, add_stats_options, check_stats_options, streaming

if TYPE_CHECKING:
    from tmac.runtime.engine import Engine
    from tmac.runtime.generate import Chunk, Generation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac generate`."""
    add_loading_options(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("-p", "--prompt", metavar="TEXT", help="what to go on with (default: standard input)")
    prompt.add_argument("--file", type=Path, metavar="F", help="a file that holds it")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--raw", action="store_true", help="go on with the prompt itself (default)")
    form.add_argument("--chat", action="store_true", help="answer the prompt: put it in the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: what the model is told first")
    add_generation_options(parser, most=128)
    parser.add_argument(
        "--prompt-cache", type=Path, metavar="FILE", help="the evaluated prompt, written if there is no such file"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="print tokens as they come (default)"
    )
    output.add_argument("--timings", action="store_true", help="print the speeds to standard error")
    output.add_argument(
        "--logprobs", type=natural, metavar="N", help="with --json: log-probabilities, also of N tokens"
    )
    output.add_argument("--json", action="store_true", help="print one JSON object")
    add_stats_options(parser)


def run(args: argparse.Namespace) -> int:
    """Generates and prints the text, or one JSON object."""
    if args.system is not None and not args.chat:
        raise CommandError("--system needs --chat")
    if args.logprobs is not None and not args.json:
        raise CommandError("--logprobs needs --json")
    check_stats_options(args)
    options, prompt = generation_options(args), _prompt(args)
    if args.logprobs is not None:
        options["logprobs"] = args.logprobs
    stream = args.stream and not args.json
    engine = load_engine(args)
    report = StatsReport(engine, args)
    try:
        with user_errors():
            found = _call(engine, args, prompt, stream=stream, **options)
            last = _print_chunks(found) if stream else _print(found, args.json, streaming(engine))
        if args.timings:
            print(speeds(last.timings), file=sys.stderr)
        report.add(last.speculation)
        report.finish()
    finally:
        engine.close()
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.prompt is not None:
        text = args.prompt
    elif args.file is not None:
        text = read_text(args.file)
    elif sys.stdin is None or sys.stdin.isatty():
        raise CommandError("no prompt: expected -p TEXT, --file F, or a text on standard input")
    else:
        text = sys.stdin.read()
    if not text:
        raise CommandError("the prompt is empty")
    return str(text)


def _call(engine: Engine, args: argparse.Namespace, prompt: str, **options: Any) -> Any:
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    messages = [*system, {"role": "user", "content": prompt}]
    if args.prompt_cache is not None:
        options["prompt_cache"] = args.prompt_cache
        if not args.prompt_cache.exists():
            text = engine.apply_chat_template(messages) if args.chat else prompt
            engine.save_prompt(args.prompt_cache, text, add_special_tokens=not args.chat)
    return engine.chat(messages, **options) if args.chat else engine.generate(prompt, **options)


def _print_chunks(chunks: Iterable[Chunk]) -> Any:
    """Prints the pieces as they come and returns the last one."""
    chunk = None
    try:
        for chunk in chunks:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
    finally:
        print(flush=True)
    return chunk


def _print(generation: Generation, as_json: bool, streamed: dict[str, Any] | None) -> Any:
    print(json.dumps({**facts(generation), "streaming": streamed}, indent=2) if as_json else generation.text)
    return generation


def facts(generation: Generation) -> dict[str, Any]:
    """A generation as plain JSON values, its speeds among its timings."""
    timings = generation.timings
    speculation = generation.speculation
    found = asdict(generation) | {"speculation": speculation and speculation.to_dict()}
    found["timings"] |= {
        "prompt_tokens_per_second": timings.prompt_tokens_per_second,
        "generated_tokens_per_second": timings.generated_tokens_per_second,
    }
    return found
