"""The options that commands share: how a model is loaded, and how tokens are chosen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import ACTIVATIONS, CACHE_TYPES, bits, positive, types
from tmac.cli.errors import CommandError
from tmac.cli.info import check_overrides

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmac.runtime.engine import Engine
    from tmac.runtime.generate import Timings

LOADING = (
    *("activation", "cache_type", "context_length", "head_bits", "embedding_bits", "requantize"),
    *("draft", "memory_limit"),
)
DRAFTS = "ngram, planes:K, model:PATH, ngram+planes:K, ngram+model:PATH, auto or none"
CHECKPOINT = "a checkpoint: a folder, a file of weights, or the id of a repository on the hub"
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
GENERATION = (*SAMPLING, "ignore_eos", "context_shift")


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """PATH, and how it is loaded."""
    parser.add_argument("path", metavar="PATH", help=CHECKPOINT)
    group = parser.add_argument_group("loading")
    group.add_argument("-t", "--threads", type=positive, help="threads (default: the CPUs of this process)")
    group.add_argument("--cache-type", choices=CACHE_TYPES, help="keys and values (default: f16; f32 for exact sums)")
    group.add_argument("-c", "--context-length", type=positive, help="positions (default: what the model was made for)")
    group.add_argument("--activation", choices=ACTIVATIONS, help="how products see their inputs")
    group.add_argument("--head-bits", type=_width, help="bits of a float output head (default: it stays as it is)")
    group.add_argument("--embedding-bits", type=_width, help="bits of a float embedding (default: it stays as it is)")
    group.add_argument("--requantize", type=types, metavar="TYPE,...", help="inexact GGUF types to round, or all")
    add_speed_options(group)


def add_speed_options(group: Any) -> None:
    """What guesses tokens, and how much memory there is."""
    group.add_argument("--draft", metavar="NAME", help=f"guesses tokens, for speed alone: {DRAFTS} (default: none)")
    group.add_argument(
        "--memory-limit", metavar="SIZE", help="of the process, 700M or 1.5G; what has no room streams from the disk"
    )


def add_generation_options(parser: argparse.ArgumentParser, most: int | None) -> None:
    """How tokens are chosen and when a text ends; `most` is the default of --max-new-tokens."""
    group = parser.add_argument_group("generation")
    until = "the context is full" if most is None else str(most)
    group.add_argument("-n", "--max-new-tokens", type=positive, default=most, help=f"most tokens (default: {until})")
    group.add_argument("--temperature", type=float, help="0 takes the most likely token (default: 0)")
    group.add_argument("--top-k", type=int, help="of this many likely tokens; 0: all (default: 0)")
    group.add_argument("--top-p", type=float, help="of the likely tokens that reach this share together (default: 1)")
    group.add_argument("--min-p", type=float, help="of tokens with this share of the likeliest one's (default: 0)")
    group.add_argument("--repetition-penalty", type=float, help="divides logits of tokens that occurred (default: 1)")
    group.add_argument("--presence-penalty", type=float, help="taken off tokens that occurred (default: 0)")
    group.add_argument("--frequency-penalty", type=float, help="taken off for each time that they did (default: 0)")
    group.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        metavar="ID=VALUE",
        help="added to its logit; -inf forbids it",
    )
    group.add_argument("--seed", type=_seed, help="same seed, same text; random: another one each time (default: 0)")
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated")
    group.add_argument("--ignore-eos", action="store_true", default=None, help="go on after the end of the text")
    group.add_argument(
        "--context-shift", action="store_true", default=None, help="forget the older half when the context is full"
    )
    what = group.add_mutually_exclusive_group()
    what.add_argument("--json-schema", type=Path, metavar="FILE", help="the text is JSON of this schema")
    what.add_argument("--grammar", type=Path, metavar="FILE", help="the text is derived from this grammar")
    what.add_argument("--regex", metavar="PATTERN", help="the text matches this regular expression")


def _width(text: str) -> int:
    width = bits(text)
    if isinstance(width, int):
        return width
    raise argparse.ArgumentTypeError(f"expected 1 to 8, found {text!r}")


def _seed(text: str) -> int | str:
    if text == "random":
        return text
    if text.isdecimal():
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from 0 on, or random, found {text!r}")


def _bias(text: str) -> tuple[int, float]:
    token, found, value = text.partition("=")
    try:
        if found and token.isdecimal():
            return int(token), float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"expected ID=VALUE, 42=-inf for instance, found {text!r}")


def load_engine(args: argparse.Namespace, **more: Any) -> Engine:
    """The engine that the options ask for; `more` are other arguments of `Engine.from_pretrained`."""
    check_overrides()
    try:
        from tmac.runtime.engine import Engine
    except ImportError as error:
        raise CommandError(f"{error}; pip install 'tmac-cpu[engine]'") from error
    options = {name: getattr(args, name) for name in LOADING if getattr(args, name, None) is not None}
    with user_errors():
        return Engine.from_pretrained(args.path, num_threads=args.threads, **options, **more)


def generation_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `Engine.generate` is called with; options that were not given are left to it."""
    options = {name: getattr(args, name) for name in GENERATION if getattr(args, name) is not None}
    options["max_new_tokens"] = args.max_new_tokens
    if args.logit_bias is not None:
        options["logit_bias"] = dict(args.logit_bias)
    if args.seed is not None:
        options["seed"] = None if args.seed == "random" else args.seed
    if args.stop:
        options["stop"] = tuple(args.stop)
    if args.json_schema is not None:
        options["json_schema"] = read_text(args.json_schema, check=json.loads)
    if args.grammar is not None:
        options["grammar"] = read_text(args.grammar)
    if args.regex is not None:
        options["regex"] = args.regex
    return options


def read_text(path: Path, check: Callable[[str], object] | None = None) -> str:
    """A file's text, which `check` must accept. Raises CommandError that names the file where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        if check is not None:
            check(text)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error
    return text


@contextmanager
def user_errors() -> Iterator[None]:
    """What the engine says of arguments, a checkpoint or a failing disk, as one line; what it needs, by the extra."""
    from tmac import FormatError

    try:
        yield
    except FormatError:
        raise
    except ImportError as error:
        text = str(error)
        raise CommandError(text if "tmac-cpu[" in text else f"{text}; pip install 'tmac-cpu[engine]'") from error
    except (NotImplementedError, RecursionError):  # are RuntimeErrors, and nothing that a user can put right
        raise
    except (ValueError, TypeError, MemoryError, RuntimeError) as error:
        raise CommandError(str(error) or "out of memory") from error


def speeds(timings: Timings) -> str:
    """The two speeds of an answer as one line."""
    reused = f" ({timings.reused_tokens} reused)" if timings.reused_tokens else ""
    return (
        f"prompt {timings.prompt_tokens} tokens{reused}, {timings.prompt_tokens_per_second:.1f} tokens/s; "
        f"answer {timings.generated_tokens} tokens, {timings.generated_tokens_per_second:.1f} tokens/s"
    )
