"""The models that `tmac eval` measures: on the native engine, or as Hugging Face models."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmac.cli.engine_options import load_engine
from tmac.cli.errors import CommandError
from tmac.cli.info import check_overrides

if TYPE_CHECKING:
    from tmac.evaluation.scorer import Scorer
    from tmac.hf.scorer import HFScorer

HF_OPTIONS = ("activation", "head_bits", "embedding_bits", "requantize")
ENGINE_ONLY = ("cache_type", "context_length", "memory_limit", "draft")


@contextmanager
def open_scorer(args: argparse.Namespace) -> Iterator[tuple[Scorer, str]]:
    """The model of the options, and "engine" or "hf"."""
    check_overrides()
    way = _way(args)
    if args.draft not in (None, "none"):
        raise CommandError("--draft is for commands that write texts: scores need no draft")
    if way == "engine":
        from tmac.evaluation.scorer import EngineScorer

        with load_engine(args) as engine:
            yield EngineScorer(engine, _name(args.path)), way
    else:
        options = {name: getattr(args, name) for name in HF_OPTIONS if getattr(args, name) is not None}
        yield _open_hf(args.path, args.threads, **options), way


def open_reference(args: argparse.Namespace) -> HFScorer:
    """The float model that `--reference` names."""
    options = {"requantize": args.requantize} if args.requantize is not None else {}
    return _open_hf(args.reference, args.threads, as_floats=True, **options)


def _open_hf(path: str, threads: int | None, **options: Any) -> HFScorer:
    try:
        import torch

        from tmac.hf.scorer import open_scorer as open_hf_scorer
    except ImportError as error:
        raise CommandError(f"{error}; pip install 'tmac-cpu[hf]'") from error
    if threads is not None:
        torch.set_num_threads(threads)
    return open_hf_scorer(path, name=_name(path), **options)


def _way(args: argparse.Namespace) -> str:
    """The engine where it knows the model's family and is installed, if it was not said."""
    way = args.way if args.way != "auto" else "engine" if _engine_knows(args) else "hf"
    given = [name for name in ENGINE_ONLY if getattr(args, name) is not None]
    if way == "hf" and given:
        raise CommandError(f"--{given[0].replace('_', '-')} is for the engine")
    return str(way)


def _engine_knows(args: argparse.Namespace) -> bool:
    try:
        from tmac.formats import open_checkpoint
        from tmac.runtime.engine import Engine  # noqa: F401
        from tmac.runtime.families import describe
        from tmac.runtime.hub import local_path
    except ImportError:
        return False
    checkpoint = open_checkpoint(local_path(args.path), requantize=args.requantize or ())
    try:
        describe(checkpoint.config or {})
    except ValueError:
        return False
    return True


def _name(path: str) -> str:
    return Path(path).name or str(path)
