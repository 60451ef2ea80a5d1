"""Perplexity against size: our flow beside other tools, from the same float model, calibration tokens and text.

    python -m benchmarks.accuracy --model FILE.gguf --environments FOLDER --llama-cpp FOLDER --json JSON --add --readme
    python -m benchmarks.accuracy --from JSON --readme                          # only writes tables and pictures

The model is dequantized once into `--work`; every tool starts from there, and what it makes is turned into float32
weights again, which one scorer in PyTorch measures. Python tools run in FOLDER/peer-NAME/bin/python; `--llama-cpp` has
`llama-quantize` and `llama-imatrix`. A row that the file has is not measured again, so a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy_peers import llama_cpp, results
from benchmarks.accuracy_peers.job import ABOUT, Job
from benchmarks.accuracy_peers.plan import LLAMA_CPP, MODULES, OURS, TOOLS, settings
from benchmarks.accuracy_peers.reference import Reference
from benchmarks.accuracy_peers.rows import REFERENCE, Row, RunFile
from benchmarks.accuracy_peers.scorer import Losses, loss_of, perplexity, token_losses, with_weights
from benchmarks.accuracy_peers.setting import split_head
from benchmarks.machine import machine
from benchmarks.peers.worker import ROOT
from benchmarks.report import command


class NoRowError(Exception):
    """Why a tool has no row."""


class Comparison:
    """The rows of one model.

    Args:
        name: of the model, in the table.
        reference: its files.
        run: where rows go.
        options: of the command line.
    """

    def __init__(self, name: str, reference: Reference, run: RunFile, options: argparse.Namespace) -> None:
        self.name, self.reference, self.run, self.options = name, reference, run, options
        self.shapes = results.matrices(reference.model)
        self.float_losses = self._reference()

    def _reference(self) -> Losses:
        path = self.reference.folder / "losses.npy"
        if not path.exists():
            np.save(path, self._score(results.Result({}, {})))
        losses: Losses = np.load(path)
        weights = sum(rows * columns for rows, columns in self.shapes.values())
        calibration = np.load(self.reference.windows).shape
        self.run.head["models"][self.name] = {
            "source": self.reference.source.name,
            "weights": weights,
            "tokens": int(losses.size),
            "window": losses.shape[1] + 1,
            "calibration_tokens": int(np.prod(calibration)),
        }
        value = perplexity(losses)
        self.run.add(Row(self.name, REFERENCE, "float32", 32.0, value, 0.0, 0.0, 0.0))
        return losses

    def _score(self, result: results.Result) -> Losses:
        begin, text = time.monotonic(), self.reference.text()

        def show(done: int) -> None:
            left = (time.monotonic() - begin) / done * (len(text) - done)
            print(f"\r{done} of {len(text)} windows, {left:.0f} s left ", end="", file=sys.stderr, flush=True)

        model = with_weights(self.reference.model, result.weights)
        losses = token_losses(model, text, show if sys.stderr.isatty() else None)
        return losses

    def measure(self, tool: str, setting: str) -> None:
        key = (self.name, tool, setting)
        if self.run.has(key):
            return
        try:
            row = self._row(tool, setting)
        except (NoRowError, RuntimeError, ValueError, OSError) as why:
            print(f"not run: {tool} {setting}: {why}", flush=True)
            self.run.refuse(key, str(why))
            return
        print(row, flush=True)
        self.run.add(row)

    def _row(self, tool: str, setting: str) -> Row:
        own, head = split_head(setting)
        folder = self.reference.folder / f"{tool} {own}".replace(" ", "-")
        if not (folder / ABOUT).exists():
            self._quantize(tool, own, folder)
        about = json.loads((folder / ABOUT).read_text())
        self.run.head["versions"].setdefault(tool, {}).update(about["versions"])
        result = results.read(folder)
        if head is not None:
            model = with_weights(self.reference.model, {})
            result = results.with_head(result, head, model.get_input_embeddings().weight.detach())
        bits = result.bits_per_weight(self.shapes)
        if not self.options.least_bits <= bits <= self.options.most_bits:
            raise NoRowError(f"{bits:.2f} bits per weight are outside of the range that was asked for")
        losses = self._score(result)
        runs = (
            perplexity(engine_losses(results.checkpoint_folder(folder), self.reference.text()))
            if tool == OURS
            else None
        )
        return Row(
            self.name,
            tool,
            setting,
            bits,
            perplexity(losses),
            *loss_of(self.float_losses, losses),
            runs,
            about["seconds"],
        )

    def _quantize(self, tool: str, setting: str, folder: Path) -> None:
        """Fills the folder, or leaves none. Raises NoRowError with the end of what the tool said."""
        shutil.rmtree(folder, ignore_errors=True)
        made = folder.with_name(f"unfinished-{folder.name}")
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        files = self.reference
        model, windows, text, more = (
            path.resolve() for path in (files.model, files.windows, files.calibration, files.more)
        )
        job = Job(model, windows, text, more, setting, made.resolve())
        if tool == LLAMA_CPP:
            begin = time.monotonic()
            if self.options.llama_cpp is None:
                raise NoRowError("--llama-cpp names no folder")
            version = llama_cpp.quantize(self.options.llama_cpp.resolve(), job)
            about = {"seconds": round(time.monotonic() - begin, 1), "versions": {"llama.cpp": version}}
            (made / ABOUT).write_text(json.dumps(about))
        else:
            path = made.resolve().with_name(f"{made.name}.json")
            job.write(path)
            words = [self._python(tool), "-m", f"benchmarks.accuracy_peers.{MODULES[tool]}", str(path)]
            log = path.with_suffix(".log")
            with log.open("w") as out:
                places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
                # not in the checkout: gptqmodel writes logs where it runs
                done = subprocess.run(words, cwd=path.parent, env=environment, stdout=out, stderr=out, check=False)
            if status := done.returncode:
                raise NoRowError(f"status {status}: {log.read_text(errors='replace')[-800:]}")
        made.rename(folder)

    def _python(self, tool: str) -> str:
        if tool == OURS:
            return sys.executable
        path = (self.options.environments or Path("peers")) / f"peer-{tool}" / "bin" / "python"
        if not path.exists():
            raise NoRowError(f"no interpreter peer-{tool}/bin/python in --environments")
        return str(path.absolute())


def engine_losses(folder: Path, windows: Any) -> Losses:
    """As `token_losses`, in our engine with the activations that the checkpoint asks for."""
    from tmac.runtime.engine import Engine

    with Engine.from_pretrained(folder) as engine:
        return np.stack([-engine.log_probabilities(window.tolist()).astype(np.float64) for window in windows])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", type=Path, help="GGUF file or folder")
    parser.add_argument("--name", help="of the model in the table; the file's name else")
    parser.add_argument("--work", type=Path, default=Path("accuracy-work"), help="folder for files that can be large")
    parser.add_argument("--calibration", type=Path, metavar="TEXT", help="UTF-8; else news and Wikipedia of gensim")
    parser.add_argument("--text", type=Path, metavar="TEXT", help="UTF-8; else the passages of the package evals")
    parser.add_argument("--windows", type=int, nargs=2, default=(32, 200), metavar=("CALIBRATION", "TEXT"))
    parser.add_argument("--environments", type=Path, metavar="FOLDER", help="which has peer-NAME/bin/python")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help="with llama-quantize and llama-imatrix")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--settings", nargs="+", help="in place of the plan's")
    parser.add_argument("--least-bits", type=float, default=0.0, help="smaller results are not scored")
    parser.add_argument("--most-bits", type=float, default=99.0, help="larger results are not scored")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--add", action="store_true", help="keep the file's rows and go on")
    parser.add_argument("--from", type=Path, dest="source", metavar="JSON", help="measure nothing, take this file")
    parser.add_argument("--readme", action="store_true", help="write README.md, docs/accuracy.md and its pictures")
    options = parser.parse_args(arguments)
    if (options.source is None) == (options.model is None):
        parser.error("either --model, or --from with the file of a run")
    if options.readme and not (options.source or options.json):
        parser.error("--readme needs the run in a file: --json FILE or --from FILE")
    return options


def measure(options: argparse.Namespace, arguments: list[str] | None) -> None:
    about = {"machine": machine(), "command": command("benchmarks.accuracy", arguments)}
    run = RunFile.open(options.json, about, add=options.add)
    name = options.name or options.model.stem
    work = options.work / name
    reference = Reference(options.model, work, options.calibration, options.text, *options.windows)
    comparison = Comparison(name, reference, run, options)
    for tool in options.tools:
        for setting in options.settings or settings(tool):
            comparison.measure(tool, setting)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not options.source:
        measure(options, arguments)
    if options.readme:
        from benchmarks.accuracy_peers.page import write_page

        write_page(options.source or options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
