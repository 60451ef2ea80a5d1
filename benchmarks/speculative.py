"""What speculation gains: passes over several tokens, texts with weights in memory, and models larger than memory.

    python -m benchmarks.speculative --model FILE.gguf --draft-model SMALL.gguf --llama-cpp FOLDER --json JSON --add
    python -m benchmarks.speculative --from JSON --page                        # only writes docs/speculation_figures.md
    python -m benchmarks.speculative --model FILE.gguf --tables verify memory --weights W4

W4 is the file itself; W8 its weights rounded to the nearest of 256 values in groups of 32, head and embedding too, made
once into `--work`. Plain decoding, drafts and llama.cpp take turns; all tokens are compared with those of plain
decoding, and where one is wrong there is no row. Models that are larger than memory run in processes of their own
within control groups, where the machine has them: what was used is printed, and stands in the file. With `--add` a row
that the file has is not measured again, so a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.report import command
from benchmarks.speculative_runs import in_memory
from benchmarks.speculative_runs.checkpoints import peer_file, rounded_checkpoint
from benchmarks.speculative_runs.limits import find_limits
from benchmarks.speculative_runs.page import page, write_page
from benchmarks.speculative_runs.process import PROGRAM
from benchmarks.speculative_runs.rows import AGREEMENT, MEMORY, STREAMED, TABLES, VERIFY, RunFile
from benchmarks.speculative_runs.setting import AS_IT_IS, Setting
from benchmarks.speculative_runs.streamed import streamed
from benchmarks.speculative_runs.texts import STREAMED_TEXTS, TEXTS
from tmac.runtime.streaming.memory import parse_memory
from tmac.spec import QuantSpec

W8 = QuantSpec(8, 32)
WEIGHTS = ("W8", "W4")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speculative", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, metavar="FILE.gguf", help="the target, of 4 bits")
    parser.add_argument("--draft-model", type=Path, metavar="PATH", help="a smaller model with the same tokens")
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER", help=f"with llama-quantize and {PROGRAM}")
    parser.add_argument(
        "--work", type=Path, default=Path("speculative-work"), help="folder for files that can be large"
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--drafts", nargs="+", help="in the place of those of each table; `model` is --draft-model")
    parser.add_argument("--texts", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--streamed-texts", nargs="+", choices=list(TEXTS), default=list(STREAMED_TEXTS))
    parser.add_argument("--disks", nargs="+", type=_disk, default=[AS_IT_IS, "500M"], help="`as it is`, bytes/s")
    parser.add_argument("--share", type=float, default=0.6, help="of the weights that the limit of memory holds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128, help="of a text")
    parser.add_argument("--few-tokens", type=int, default=16, help="of a text that needs the disk for each token")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--add", action="store_true", help="keep the file's rows and go on")
    parser.add_argument("--from", type=Path, dest="source", metavar="JSON", help="measure nothing, take this file")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/speculation_figures.md")
    options = parser.parse_args(arguments)
    if (options.source is None) == (options.model is None):
        parser.error("either --model, or --from with the file of a run")
    if min(options.threads, options.runs) < 1 or min(options.tokens, options.few_tokens) < 2:
        parser.error("--threads and --runs must be at least 1, --tokens and --few-tokens at least 2")
    if not 0 < options.share < 1:
        parser.error("--share must be between 0 and 1")
    if options.add and not options.json:
        parser.error("--add needs a file: --json FILE")
    if options.page and not (options.source or options.json):
        parser.error("--page needs the run in a file: --json FILE or --from FILE")
    return options


def _disk(text: str) -> str:
    if text != AS_IT_IS:
        parse_memory("--disks", text)
    return text


def setting_of(options: argparse.Namespace) -> Setting:
    """The files that are needed, made where they are missing, and the options."""
    models = {"W4": options.model} if "W4" in options.weights else {}
    if "W8" in options.weights:
        models["W8"] = rounded_checkpoint(options.model, options.work, W8)
    programs = options.llama_cpp.resolve() if options.llama_cpp else None
    peers = {"W4": options.model.resolve()} if programs else {}
    if programs and STREAMED in options.tables and "W8" in options.weights:
        peers["W8"] = peer_file(options.model, options.work, programs).resolve()
    return Setting(
        {name: path.resolve() for name, path in models.items()},
        options.draft_model.resolve() if options.draft_model else None,
        options.work,
        threads=options.threads,
        runs=options.runs,
        tokens=options.tokens,
        few_tokens=options.few_tokens,
        texts=tuple(options.texts),
        streamed_texts=tuple(options.streamed_texts),
        share=options.share,
        disks=tuple(options.disks),
        programs=programs,
        peers=peers,
        drafts=tuple(options.drafts) if options.drafts else None,
    )


def peer_version(programs: Path) -> str:
    """What llama.cpp says of itself."""
    done = subprocess.run([str(programs / PROGRAM), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"version:\s*(.+)", done.stdout + done.stderr)
    return found[1].strip() if found else "unknown"


def measure(options: argparse.Namespace, arguments: list[str] | None) -> RunFile:
    """Every row that is asked for."""
    limits = find_limits()
    head = {
        "machine": machine(),
        "command": command("benchmarks.speculative", arguments),
        "limits": str(limits),
        "threads": options.threads,
        "runs": options.runs,
        "models": {"W4": options.model.name, "W8": f"{options.model.name} rounded to 8 bits in groups of 32"},
    }
    run = RunFile.open(options.json, head, add=options.add)
    print(f"{head['machine']['cpu']}; {limits}", flush=True)
    setting = setting_of(options)
    if options.draft_model:
        run.head["models"]["model"] = options.draft_model.name
    if setting.programs:
        run.head["versions"]["llama.cpp"] = peer_version(setting.programs)
    for weights in options.weights:
        for name, table in ((VERIFY, in_memory.verify), (AGREEMENT, in_memory.agreement), (MEMORY, in_memory.memory)):
            if name in options.tables:
                table(setting, run, weights)
        if STREAMED in options.tables:
            streamed(setting, run, limits, weights)
    run.save()
    return run


def main(arguments: list[str] | None = None) -> int:
    """The command of the first lines. Returns its exit code."""
    options = parse(arguments)
    if options.model is not None:
        run = measure(options, arguments)
        print(page({**run.head, "not_run": run.not_run, "rows": [vars(row) for row in run.rows]}))
    if options.page:
        write_page(options.source or options.json)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # groups are taken away however this ends
    sys.exit(main())
