"""`tmac info`: what this machine is, and which kernel serves what on it; or what a checkpoint is."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tmac.cli.errors import CommandError

BACKENDS = {"own": "own workers (OpenMP once torch is loaded)", "openmp": "OpenMP"}
PACKAGES = ("numpy", "safetensors", "torch", "transformers", "tokenizers", "gguf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac info`."""
    parser.add_argument(
        "path", nargs="?", type=Path, metavar="PATH", help="a checkpoint: a folder or a file of weights"
    )
    parser.add_argument("--layers", action="store_true", help="list every layer of the checkpoint")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Prints the description of this machine, or of a checkpoint."""
    if args.path is not None:
        return _run_checkpoint(args)
    if args.layers:
        raise CommandError("--layers needs the path of a checkpoint")
    facts = describe()
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(_lines(facts)))
    return 0


def _run_checkpoint(args: argparse.Namespace) -> int:
    from tmac.cli.describe import describe_checkpoint, lines

    facts = describe_checkpoint(args.path)
    print(json.dumps(facts, indent=2) if args.json else "\n".join(lines(facts, args.layers)))
    return 0


def describe() -> dict[str, Any]:
    """CPU, features, kernels, threads, versions and overrides as plain JSON values.

    Raises:
        CommandError: an override in the environment names something that is unknown or cannot run here.
    """
    import tmac
    from tmac import _core

    check_overrides()
    return {
        "version": tmac.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": _versions(),
        "cpu": _core.cpu_model(),
        "features": tmac.cpu_features(),
        "threads": tmac.get_num_threads(),
        "thread_backend": _core.thread_backend(),
        "cpus": os.cpu_count(),
        "overrides": overrides(),
        "kernels": [dict(row) for row in tmac.kernels()],
        "selected": _selected(),
    }


def overrides() -> dict[str, str]:
    """The environment variables of tmac that are set."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("TMAC_")}


def check_overrides() -> None:
    """Raises CommandError where an override names something that is unknown or cannot run here."""
    from tmac import kernels
    from tmac.tuner import tuning_enabled

    try:
        kernels()
        tuning_enabled()
    except (ValueError, RuntimeError) as error:
        raise CommandError(str(error)) from error


def _selected() -> dict[str, str | None]:
    """Width -> the kernel that serves it at group size 32 with offsets; None where an override leaves none."""
    from tmac import QuantSpec, UnsupportedSpecError, _core

    specs = {"ternary": QuantSpec(bits=2, group_size=32, codebook="ternary")}
    specs |= {str(bits): QuantSpec(bits=bits, group_size=32, zero_point="offset") for bits in range(1, 9)}

    def select(spec: QuantSpec) -> str | None:
        try:
            return _core.select_kernel(spec)
        except UnsupportedSpecError:
            return None

    return {name: select(spec) for name, spec in specs.items()}


def _versions() -> dict[str, str | None]:
    """Versions of what is installed, without importing it."""
    from importlib import metadata

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in PACKAGES}


def _lines(facts: Mapping[str, Any]) -> Iterable[str]:
    yield f"tmac {facts['version']}, Python {facts['python']}, {facts['platform']}"
    yield "packages:  " + ", ".join(f"{name} {version or '-'}" for name, version in facts["packages"].items())
    yield f"CPU:       {facts['cpu']}"
    yield "features:  " + (" ".join(name for name, present in facts["features"].items() if present) or "none")
    yield f"threads:   {facts['threads']} of {facts['cpus']} CPUs, {BACKENDS[facts['thread_backend']]}"
    yield "overrides: " + (" ".join(f"{name}={value}" for name, value in facts["overrides"].items()) or "none")
    yield ""
    yield from _table(["bits", "kernel (group size 32)"], [[k, v or "-"] for k, v in facts["selected"].items()])
    yield ""
    yield from _table(["kernel", "isa", "method", "layout", "state"], [_row(kernel) for kernel in facts["kernels"]])


def _row(kernel: Mapping[str, Any]) -> list[str]:
    state = (
        "ready"
        if kernel["selectable"]
        else "not selected by the overrides"
        if kernel["runnable"]
        else "needs another CPU"
    )
    return [kernel["name"], kernel["isa"], kernel["method"], kernel["layout"], state]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in [head, ["-" * width for width in widths], *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
