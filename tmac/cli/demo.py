"""`tmac demo`: a real model before and after quantization, on this machine.

Answers a prompt with the low-bit model, then prints one table from the same run: speed, memory, perplexity.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.arguments import TERNARY, bits, positive
from tmac.cli.demo_model import demo_model
from tmac.cli.errors import CommandError
from tmac.cli.info import check_overrides

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from tmac.quant import QuantConfig

PROMPT = "What is the capital of France, and what is it known for?"
PACKAGES = {"torch", "transformers", "tokenizers", "gguf", "rich"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac demo`."""
    parser.add_argument("--prompt", default=PROMPT, help="what to ask the model (default: %(default)s)")
    parser.add_argument("--bits", type=bits, default=4, help="1 to 8, or ternary (default: %(default)s)")
    parser.add_argument("--group-size", type=int, default=32, help="columns that share a scale (default: %(default)s)")
    parser.add_argument("--sym", action="store_true", help="centre every group on zero, without an offset")
    parser.add_argument("--head-bits", type=int, default=8, help="bits of the output head (default: %(default)s)")
    parser.add_argument(
        "--max-new-tokens", type=positive, default=64, help="length of the answer (default: %(default)s)"
    )
    parser.add_argument("--threads", type=positive, help="threads of torch and tmac (default: torch's choice)")
    parser.add_argument("--tokens", type=_tokens, default=4096, help="tokens of the perplexity (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the comparison")
    parser.add_argument("--json", action="store_true", help="print one JSON object; all else goes to stderr")


def _tokens(text: str) -> int:
    if text.isdecimal() and int(text) >= 2:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected at least 2 tokens, found {text!r}")


def run(args: argparse.Namespace) -> int:
    """Runs the demo and prints the answer and the table, or one JSON object."""
    _require(PACKAGES | ({"matplotlib"} if args.plot else set()))
    check_overrides()
    if args.plot and not args.plot.absolute().parent.is_dir():
        raise CommandError(f"--plot {args.plot}: there is no such folder")
    from rich.console import Console

    console = Console(stderr=args.json, highlight=False)
    seconds: dict[str, float] = {}
    with _timed(seconds, "total"):
        report = _report(args, console, seconds)
    _show(report, args, console)
    return 0


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _require(packages: set[str]) -> None:
    missing = sorted(name for name in packages if importlib.util.find_spec(name) is None)
    if missing:
        raise CommandError(f"the demo needs {', '.join(missing)}: pip install 'tmac-cpu[demo]'")


def _config(args: argparse.Namespace) -> QuantConfig:
    """The configuration that the options ask for, refused here where no kernel of this machine serves it."""
    from tmac import QuantConfig, UnsupportedSpecError, _core

    ternary = args.bits == TERNARY
    try:
        config = QuantConfig(
            bits=2 if ternary else args.bits,
            group_size=args.group_size,
            sym=args.sym,
            codebook="ternary" if ternary else "uniform",
            head_bits=args.head_bits,
        )
        for spec in (config.spec(), config.head_spec()):
            if spec is not None:
                _core.select_kernel(spec)
    except (ValueError, UnsupportedSpecError) as error:
        raise CommandError(str(error)) from error
    return config


def _fetched(console: Console) -> Path:
    path = demo_model(fetch=False)
    if path is None:
        with console.status("fetching the model (90 MB, the first time only)"):
            path = demo_model()
    assert path is not None
    return path


def _report(args: argparse.Namespace, console: Console, seconds: dict[str, float]) -> dict[str, Any]:
    """Loads, quantizes, answers and measures; plain JSON values."""
    with console.status("importing torch and transformers"), _timed(seconds, "import"):
        from tmac.cli import demo_measure

        importlib.import_module("tmac.hf")  # and with it transformers, which takes seconds
        config = _config(args)
        _set_threads(args.threads)
    with _timed(seconds, "fetch"):
        path = _fetched(console)
    model, tokenizer = _load(path, console, seconds)
    low_bit = _quantized(model, path, config, console, seconds)
    with _timed(seconds, "answer"):
        answer = _answer(low_bit, tokenizer, args, console)
    ids = demo_measure.text_ids(tokenizer, args.tokens)
    models = {"float32": model, "bfloat16": demo_measure.as_bfloat16(model), "tmac": low_bit}
    with demo_measure.progress_bar(console) as bar:
        with _timed(seconds, "speed"):
            speed = demo_measure.speeds(models, ids, bar)
        with _timed(seconds, "quality"):
            quality = demo_measure.qualities(models, ids, bar)
    rows = {
        name: {**speed[name], **quality[name], "weights_bytes": demo_measure.weight_bytes(models[name])}
        for name in models
    }
    return {
        "model": path.name,
        "config": config.to_dict(),
        "prompt": args.prompt,
        "answer": answer,
        "models": rows,
        "seconds": seconds,
        "tokens": len(ids),
        "text": demo_measure.TEXT,
        "resident_bytes": demo_measure.resident_bytes(),
        **demo_measure.machine(low_bit),
    }


def _set_threads(threads: int | None) -> None:
    import torch

    import tmac

    if threads is not None:
        torch.set_num_threads(threads)
        tmac.set_num_threads(threads)


def _load(path: Path, console: Console, seconds: dict[str, float]) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    from tmac.cli.demo_measure import progress_bar
    from tmac.formats.gguf_header import read_header
    from tmac.hf import load_gguf

    with progress_bar(console) as bar, _timed(seconds, "load"):
        task = bar.add_task(f"loading {path.name}", total=len(read_header(path).tensors))
        return load_gguf(path, lambda _: bar.advance(task))


def _quantized(
    model: LlamaForCausalLM, path: Path, config: QuantConfig, console: Console, seconds: dict[str, float]
) -> LlamaForCausalLM:
    """A quantized copy of the model from `path`; the original stays as it is."""
    import tmac

    with console.status("copying the model"):
        low_bit = copy.deepcopy(model)
    with _timed(seconds, "quantize"):
        try:
            return tmac.quantize_(low_bit, config)
        except ValueError as error:  # a weight that is NaN, Inf or beyond f16
            raise CommandError(f"{path}: {error}") from error


def _answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace, console: Console
) -> str:
    """Asks the low-bit model, greedily, and prints what it says while it says it."""
    from tmac.cli.demo_measure import stream_answer

    console.print(f"[bold]> {_escaped(args.prompt)}[/bold]")
    out = sys.stderr if args.json else sys.stdout
    answer = stream_answer(model, tokenizer, args.prompt, args.max_new_tokens, out)
    console.print()
    return answer


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _show(report: dict[str, Any], args: argparse.Namespace, console: Console) -> None:
    from tmac.cli import demo_report

    if args.plot:
        demo_report.plot(report, args.plot)
    if args.json:
        print(demo_report.as_json(report))
        return
    console.print(demo_report.table(report))
    for line in demo_report.notes(report):
        console.print(line, markup=False, soft_wrap=True)
    if args.plot:
        console.print(f"plot: {args.plot}", markup=False, soft_wrap=True)
