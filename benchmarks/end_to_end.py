"""Whole models, ours beside other engines' in one run: tokens per second and how near they come to the memory's limit.

    python -m benchmarks.end_to_end --llama-cpp-python PATH/bin/python --real FILE.gguf --json JSON --page
    python -m benchmarks.end_to_end --from JSON --page                         # only writes the tables
    python -m benchmarks.end_to_end --blocks smollm2-135m/W4 --runs 1

A block is a shape with weights of a width: our runtime on random packed weights, and each peer on a random GGUF file of
the nearest types, which is written into `--cache` once. They take turns, with passes that only read memory between.
`--real` adds a file that both sides load; there, and where a block says so, their logits are compared before.
TMAC_LLAMA_BENCH and TMAC_IK_LLAMA_BENCH name `llama-bench` executables of llama.cpp and ik_llama.cpp, TMAC_IK_MODELS a
folder with files in types of the latter. docs/benchmarks.md explains the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.end_to_end_page import check_text, write_page
from benchmarks.machine import machine
from benchmarks.peers.whole_models import PAUSE_SECONDS, GgufPeer, LlamaBench, LlamaCppPython, PeerError
from benchmarks.peers.worker import WorkerError
from benchmarks.report import command, rounded
from benchmarks.synthetic_gguf import gguf_file
from tmac import _core
from tmac.runtime.loading import load_weights, open_model
from tmac.runtime.speed import CacheType, Case, ReadProbe, Result, Subject, cache_bytes, measure
from tmac.runtime.synthetic import shape_description, synthetic_model
from tmac.spec import QuantSpec
from tmac.tuning_cache import cache_folder

GENERATED, PROMPTS = 32, (128, 512)
DEPTH = 4096 - GENERATED
HEAD = QuantSpec(6, 32)  # as Q6_K, which the peers' heads have
TERNARY = QuantSpec(2, -1, "ternary", activation="token")  # one scale a row, tokens in int8: what BitNet's layers are


@dataclass(frozen=True)
class Block:
    """Args:
    shape: of `tmac.runtime.synthetic`.
    label: of the column: W4, W2, ternary.
    spec: of our layers.
    head: of our head and embedding.
    mix: of `benchmarks.synthetic_gguf`, for llama.cpp.
    ik_types: of files that ik_llama.cpp runs: `mix` itself, or <shape>-<type>.gguf in TMAC_IK_MODELS.
    same_file: our runtime runs the peer's file too.
    """

    shape: str
    label: str
    spec: QuantSpec
    head: QuantSpec
    mix: str
    ik_types: tuple[str, ...] = ()
    same_file: bool = False

    @property
    def name(self) -> str:
        return f"{self.shape}/{self.label}"

    @property
    def weights(self) -> str:
        group = "row" if self.spec.group_size == -1 else f"g{self.spec.group_size}"
        return f"{self.label} {group}, head W{self.head.bits} g{self.head.group_size}"


BLOCKS = (
    Block("llama-2-7b", "W4", QuantSpec(4, 128), HEAD, "Q4_0", ("Q4_0", "IQ4_KS")),
    Block("llama-2-7b", "W2", QuantSpec(2, 128), HEAD, "Q2_K", ("Q2_K", "IQ2_KS")),
    Block("llama-2-7b", "ternary", TERNARY, HEAD, "TQ2_0", ("IQ2_BN",)),
    Block("bitnet-2b-4t", "ternary", TERNARY, HEAD, "TQ2_0", ("IQ2_BN",)),
    Block("smollm2-135m", "W4", QuantSpec(4, 32), QuantSpec(8, 32), "Q4_0", ("Q4_0",), same_file=True),
)
LEAST_CORRELATION = 0.99  # of logits; what rounding the activations to 8 bits, on both sides, leaves
BLOCK_ROWS = ("rows", "checks", "contexts", "profiles")
CONTEXT_BLOCKS = ("llama-2-7b/W4", "bitnet-2b-4t/ternary")


class Ours(Subject):
    """Our runtime, under the names that a row has."""

    engine = "tmac"

    def __init__(self, weights: str, model: Any, config: dict[str, Any], cache_type: CacheType = "f16") -> None:
        super().__init__(model, config, cache_type)
        self.weights = weights

    def run(self, test: Case, threads: int) -> float:
        time.sleep(PAUSE_SECONDS)
        return super().run(test, threads)

    def logits(self, ids: list[int], threads: int) -> NDArray[np.float32]:
        """Of the token after `ids`."""
        sequence = self.decoder.create()
        tokens, wanted = np.array(ids, np.int32), np.array([len(ids) - 1], np.int32)
        found = self.decoder.forward([sequence], [tokens], "prompt", [wanted], num_threads=threads)
        self.decoder.release(sequence)
        last: NDArray[np.float32] = found[0]
        return last


def our_file(path: Path) -> Ours:
    """A GGUF file in our runtime."""
    opened = open_model(path)
    builder: Any = _core.ModelBuilder(opened.description.config)
    load_weights(opened, builder)
    return Ours(f"{path.stem}.gguf", builder.build(), opened.description.config)


def same_answers(block: str, ours: Ours, peer: LlamaCppPython, report: dict[str, Any]) -> bool:
    """Whether both sides' logits of the same file correlate; a peer whose do not is closed and not timed."""
    ids = np.random.default_rng(0).integers(0, ours.config["vocab_size"], 32).tolist()
    found = float(np.corrcoef(ours.logits(ids, 1), peer.logits(ids, 1))[0, 1])
    report["checks"].append({"block": block, "file": peer.path.name, "engine": peer.engine, "correlation": found})
    if found >= LEAST_CORRELATION:
        return True
    report["not_run"].append(f"{block}: {peer.engine} {peer.path.name}: logits correlate with {found:.3f} only")
    peer.close()
    return False


def our_model(block: Block) -> tuple[Any, dict[str, Any]]:
    description = shape_description(block.shape)
    longer = {"context_length": max(DEPTH + GENERATED, description.config["context_length"])}
    description = replace(description, config={**description.config, **longer})
    return synthetic_model(description, block.spec, block.head), description.config


def make_peers(block: Block, config: dict[str, Any], options: argparse.Namespace, not_run: list[str]) -> list[GgufPeer]:
    """Those that there are; of the others `not_run` says why."""
    makers: list[tuple[str, Any]] = []
    cache = options.cache
    if options.llama_cpp_python:
        python = options.llama_cpp_python
        makers.append((
            f"llama-cpp-python {block.mix}",
            lambda: LlamaCppPython(python, block.mix, gguf_file(cache, block.shape, block.mix), config),
        ))  # fmt: skip
    if executable := os.environ.get("TMAC_LLAMA_BENCH"):
        makers.append((
            f"llama.cpp {block.mix}",
            lambda: LlamaBench("llama.cpp", executable, block.mix, gguf_file(cache, block.shape, block.mix), config),
        ))  # fmt: skip
    if ik := os.environ.get("TMAC_IK_LLAMA_BENCH"):
        for kind in block.ik_types:
            makers.append((f"ik_llama.cpp {kind}", lambda kind=kind: ik_peer(ik, block, kind, config, cache)))
    found = []
    for name, make in makers:
        try:
            peer = make()
            peer.run(Case(4, 0), 1)
            found.append(peer)
        except (PeerError, WorkerError, OSError) as why:
            not_run.append(f"{block.name}: {name}: {why}")
    return found


def ik_peer(executable: str, block: Block, kind: str, config: dict[str, Any], cache: Path) -> GgufPeer:
    if kind == block.mix:
        path = gguf_file(cache, block.shape, kind)
        return LlamaBench("ik_llama.cpp", executable, f"{kind} -rtr 1", path, config, ("-rtr", "1"))
    folder = os.environ.get("TMAC_IK_MODELS")
    path = Path(folder or ".") / f"{block.shape}-{kind}.gguf"
    if folder is None or not path.exists():
        raise PeerError(f"no {path.name} in TMAC_IK_MODELS")
    return LlamaBench("ik_llama.cpp", executable, kind, path, config)


def cases(options: argparse.Namespace) -> list[tuple[Case, int]]:
    decoding = [(Case(0, GENERATED), threads) for threads in options.threads]
    return decoding + [(Case(count, 0), threads) for count in PROMPTS for threads in options.prompt_threads]


def run_block(block: Block, options: argparse.Namespace, probe: ReadProbe, report: dict[str, Any]) -> Iterator[str]:
    """Adds the rows and the profiles of a block to the report; yields lines to print."""
    model, config = our_model(block)
    ours = Ours(block.weights, model, config)
    peers = make_peers(block, config, options, report["not_run"])
    runners = [ours]
    for peer in [peer for peer in peers if block.same_file and isinstance(peer, LlamaCppPython)]:
        runners.append(our_file(peer.path))
        if not same_answers(block.name, runners[-1], peer, report):
            peers.remove(peer)
    yield from compare(block.name, block.label, [*runners, *peers], options, probe, report)
    for threads in options.threads:
        profile = ours.profile(Case(0, GENERATED), threads)
        report["profiles"].append({"block": block.name, "n_threads": threads, "seconds_per_pass": profile})
    if options.contexts and block.name in CONTEXT_BLOCKS:
        kinds: tuple[CacheType, ...] = ("f16", "int8")
        for cache_type in kinds:
            subject = Ours(block.weights, model, config, cache_type)
            for threads in options.threads:
                context = context_row(block, subject, threads, options.runs, probe)
                report["contexts"].append(context)
                share = f"{context['cache_share_of_read']:.3f} of the read bandwidth"
                yield f"{block.name:24} {context['test']} cache {cache_type} threads={threads}: attention {share}"


def run_file(path: Path, options: argparse.Namespace, probe: ReadProbe, report: dict[str, Any]) -> Iterator[str]:
    """The same for a real GGUF file, which both sides load."""
    ours = our_file(path)
    runners: list[Ours | GgufPeer] = [ours]
    if options.llama_cpp_python:
        peer = LlamaCppPython(options.llama_cpp_python, path.name, path, dict(ours.config))
        if same_answers(path.stem, ours, peer, report):
            runners.append(peer)
    if executable := os.environ.get("TMAC_IK_LLAMA_BENCH"):
        runners.append(LlamaBench("ik_llama.cpp", executable, path.name, path, dict(ours.config)))
    yield from compare(path.stem, "file", runners, options, probe, report)


def compare(
    name: str,
    label: str,
    runners: Sequence[Ours | GgufPeer],
    options: argparse.Namespace,
    probe: ReadProbe,
    report: dict[str, Any],
) -> Iterator[str]:
    peers = [runner for runner in runners if isinstance(runner, GgufPeer)]
    try:
        for result in measure(runners, cases(options), options.runs, probe):
            row = row_of(name, label, result)
            report["rows"].append(row)
            yield line_of(row)
    finally:
        for peer in peers:
            report["versions"] |= peer.versions
            peer.close()


def row_of(name: str, label: str, result: Result) -> dict[str, Any]:
    runner: Any = result.runner
    return {
        "block": name,
        "format": label,
        "engine": runner.engine,
        "weights": runner.weights,
        **result.to_dict(),
    }


def line_of(row: dict[str, Any]) -> str:
    share = "" if row["share_of_limit"] is None else f"  {row['share_of_limit']:.3f} of {row['limit_ts']:.2f}"
    name = f"{row['engine']} {row['weights']}"
    times = f"{row['median_ts']:8.2f} {row['min_ts']:.2f}..{row['max_ts']:.2f}"
    return f"{row['block']:24} {name:42} {row['test']:6} threads={row['n_threads']} {times} tokens/s{share}"


def context_row(block: Block, subject: Ours, threads: int, runs: int, probe: ReadProbe) -> dict[str, Any]:
    """How fast the attention reads keys and values at the end of a long context: the median over profiled runs."""
    test = Case(0, GENERATED, DEPTH)
    reads, rates = [], []
    nbytes = subject.bytes_per_token(test) - subject.model.bytes_per_token
    for _ in range(runs):
        before = probe.gb_per_second(threads)
        seconds = subject.profile(test, threads)["attention"]
        reads.append((before + probe.gb_per_second(threads)) / 2)
        rates.append(nbytes / seconds / 1e9)
    shares = sorted(rate / read for rate, read in zip(rates, reads, strict=True))
    return {
        "block": block.name,
        "test": test.name,
        "cache_type": subject.cache_type,
        "n_threads": threads,
        "cache_bytes_per_token": nbytes,
        "last_position_bytes": cache_bytes(subject.config, subject.cache_type, DEPTH + GENERATED - 1),
        "cache_gb_per_s": sorted(rates)[len(rates) // 2],
        "read_gb_per_s": sorted(reads)[len(reads) // 2],
        "cache_share_of_read": shares[len(shares) // 2],
        "samples_gb_per_s": rates,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=(__doc__ or "").split("\n")[0])
    names = [block.name for block in BLOCKS]
    parser.add_argument("--blocks", nargs="*", choices=names, default=names, metavar="SHAPE/FORMAT")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="of generated tokens")
    parser.add_argument("--prompt-threads", nargs="+", type=int, default=[2], help="of prompts")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--no-contexts", dest="contexts", action="store_false", help="leave the long contexts out")
    parser.add_argument("--llama-cpp-python", metavar="INTERPRETER", help="which has llama-cpp-python")
    parser.add_argument("--real", type=Path, metavar="FILE.gguf", help="a file that both sides load")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "benchmarks", help="folder of the GGUF files")
    parser.add_argument("--json", type=Path, help="write machine and rows to this file")
    parser.add_argument("--add", action="store_true", help="keep the file's other blocks: a run in parts")
    parser.add_argument("--from", type=Path, dest="source", metavar="JSON", help="measure nothing, take this file")
    parser.add_argument("--page", action="store_true", help="write the tables into docs/benchmarks.md")
    options = parser.parse_args(arguments)
    if min(options.runs, *options.threads, *options.prompt_threads) < 1:
        parser.error("--runs, --threads and --prompt-threads must be at least 1")
    if options.add and not options.json:
        parser.error("--add needs a file: --json FILE")
    if options.page and not (options.source or options.json):
        parser.error("--page needs the run in a file: --json FILE or --from FILE")
    return options


def other_blocks(before: dict[str, Any], measured: Sequence[str], now: dict[str, Any]) -> dict[str, Any]:
    """What a file has of blocks that are not measured now. Another machine's, or one of other runs, ends it."""
    for key in ("machine", "runs"):
        if before[key] != now[key]:
            sys.exit(f"--add: the file has another {key}: {before[key]}, here {now[key]}")
    lists = {key: [row for row in before[key] if row["block"] not in measured] for key in BLOCK_ROWS}
    not_run = [why for why in before["not_run"] if not why.startswith(tuple(f"{name}:" for name in measured))]
    commands = [*before["command"], "&&", *now["command"]]
    return {**now, **lists, "versions": before["versions"], "not_run": not_run, "command": commands}


def measure_all(options: argparse.Namespace, arguments: list[str] | None) -> None:
    about = machine()
    report: dict[str, Any] = {
        "machine": about,
        "command": command("benchmarks.end_to_end", arguments),
        "runs": options.runs,
        "versions": {},
        "not_run": [],
        "rows": [],
        "checks": [],
        "contexts": [],
        "profiles": [],
    }
    measured = [*options.blocks, *([options.real.stem] if options.real else [])]
    if options.add and options.json.exists():
        report = other_blocks(json.loads(options.json.read_text()), measured, report)
    print(f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}; medians of {options.runs} runs in turn")
    probe = ReadProbe()
    blocks = [run_block(block, options, probe, report) for block in BLOCKS if block.name in options.blocks]
    if options.real:
        blocks.append(run_file(options.real, options, probe, report))
    for lines in blocks:
        for line in lines:
            print(line, flush=True)
        if options.json:
            options.json.write_text(json.dumps(rounded(report), indent=1) + "\n")
    for check in report["checks"]:
        print(f"{check['block']}: {check_text(check)}")
    for why in report["not_run"]:
        print(f"not run: {why}")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if not options.source:
        measure_all(options, arguments)
    if options.page:
        write_page(options.source or options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
