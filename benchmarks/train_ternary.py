"""Trains a small BitNet b1.58 on text that PyPI packages carry, exports it, and shows that it runs here without loss.

    pip install --no-deps gensim
    python -m benchmarks.train_ternary model --minutes 30 --json ternary.json

`model` is a folder of transformers' BitNet format with a tokenizer. docs/ternary.md says what is done and what came
out.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import machine
from benchmarks.report import command, report_text
from benchmarks.ternary.check import Checks, check
from benchmarks.ternary.data import Corpus, corpus, read_texts
from benchmarks.ternary.export import export
from benchmarks.ternary.model import Shape, build, is_bf16_faster
from benchmarks.ternary.train import Curve, Point, Training, train

PERPLEXITY_TOKENS = 16384
TOLD = 20  # lines of progress


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 where a check fails, 2 where nothing could be trained, 130 after Ctrl-C. Then no folder is written."""
    options = parser().parse_args(arguments)
    try:
        return run(options, None if arguments is None else [*arguments])
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"train_ternary: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train_ternary: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="python -m benchmarks.train_ternary", description=(__doc__ or "").split("\n")[0]
    )
    found.add_argument("out", type=Path, help="folder to write")
    found.add_argument("--force", action="store_true", help="replace a folder that exists")
    until = found.add_mutually_exclusive_group()
    until.add_argument("--minutes", type=_positive, default=30.0, help="how long to train (default: 30)")
    until.add_argument("--steps", type=_count, help="how many steps instead: the same numbers every time")
    found.add_argument("--text", type=Path, nargs="+", default=[], help="UTF-8 files (default: texts in gensim)")
    found.add_argument("--json", type=Path, help="file for the loss curve and the checks")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--threads", type=_count, help="of torch (default: its own choice)")
    found.add_argument("--texts", type=_count, default=Training.texts, help="samples of a step (default: 4)")
    found.add_argument("--rate", type=_positive, default=Training.peak, help="highest learning rate (default: 3e-3)")
    found.add_argument(
        "--gradients",
        choices=("auto", "f32", "bf16"),
        help="default: auto, the faster one; with --steps f32",
    )
    found.add_argument(
        "--check-tokens", type=_count, default=PERPLEXITY_TOKENS, help="held-out tokens of the perplexities (16384)"
    )
    for field in fields(Shape):
        found.add_argument(f"--{field.name.replace('_', '-')}", type=_count, default=field.default)
    return found


def run(options: argparse.Namespace, arguments: list[str] | None) -> int:
    """Everything from the text to the report."""
    shape = Shape(**{field.name: getattr(options, field.name) for field in fields(Shape)})
    if options.out.exists() and not options.force:
        raise FileExistsError(f"{options.out} exists already: --force replaces it")
    if options.threads:
        torch.set_num_threads(options.threads)
    begin = time.perf_counter()
    texts = corpus(read_texts(options.text), shape.vocabulary, shape.context)
    print(f"{len(texts.train)} tokens to train on, {len(texts.held_out)} held out, {time.perf_counter() - begin:.0f} s")
    wish = options.gradients or ("f32" if options.steps else "auto")
    low = is_bf16_faster(shape, options.texts * shape.context) if wish == "auto" else wish == "bf16"
    training = Training(options.minutes, options.steps, options.texts, options.rate, seed=options.seed, low=low)
    model = build(shape, texts.end, options.seed, low)
    used = time.process_time()
    curve = train(model, texts.train, shape.context, training, Reporter())
    used = time.process_time() - used
    export(model, texts.tokenizer, options.out, replace=options.force)
    print(f"{options.out}: {curve.tokens} tokens, {curve.tokens_per_second:.0f} a second")
    begin = time.perf_counter()
    checks = check(model, options.out, texts.held_out[: options.check_tokens], min(shape.context, 256))
    print(f"checked in {time.perf_counter() - begin:.0f} s")
    head = about(shape, training, texts, curve, checks, model)
    head = {"command": command("benchmarks.train_ternary", arguments), "cpu_seconds": used, **head}
    if options.json:
        write(options.json, report_text(head, curve.points))
    return tell(checks)


class Reporter:
    """Prints a line of the curve now and then."""

    def __init__(self) -> None:
        self.told = 0.0

    def __call__(self, point: Point, share: float) -> None:
        if share >= min(1.0, self.told + 1 / TOLD):
            self.told = share
            print(f"{share:4.0%}  step {point.step}, {point.seconds:.0f} s, loss {point.loss:.3f}", flush=True)


def about(
    shape: Shape, training: Training, texts: Corpus, curve: Curve, checks: Checks, model: nn.Module
) -> dict[str, Any]:
    """What the report says before the loss curve."""
    perplexity = checks.perplexities[0].perplexity
    tokens = len(texts.held_out)
    return {
        **machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "shape": asdict(shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": asdict(training),
        "train_tokens": len(texts.train),
        "held_out_tokens": tokens,
        "tokens_seen": curve.tokens,
        "seconds": curve.seconds,
        "tokens_per_second": curve.tokens_per_second,
        "perplexity": perplexity,
        "bits_per_character": math.log2(perplexity) * tokens / texts.characters,
        "checks": checks.to_dict(),
    }


def tell(checks: Checks) -> int:
    """Prints the checks; 1 where one of them failed."""
    print(f"{len(checks.layers)} layers: int8 activations, int32 sums and outputs compared bit for bit")
    furthest = max(layer.transformers for layer in checks.layers)
    print(f"outputs of transformers' layers: at most {furthest:.1f} roundings away")
    for each in checks.perplexities:
        print(f"{each.way:22} perplexity {each.perplexity:.6f}  ({each.relative:.1e} off)")
    failures = checks.failures()
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if not failures:
        print("lossless: every bit that has to be the same is")
    return 1 if failures else 0


def write(path: Path, text: str) -> None:
    """The whole file, or none."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, found {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
