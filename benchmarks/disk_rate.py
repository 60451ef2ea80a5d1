"""How much of the disk's sequential bandwidth a model gets that reads its weights while it runs.

    python -m benchmarks.disk_rate MODEL --memory-limit 700M --json JSON

The packed file is read from front to back past the page cache, by one and by several threads; then the model runs, and
what it read is divided by the time in which it was reading, and by all the time; then the file is read once more. The
faster of the plain readings counts.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tmac
from benchmarks.machine import machine
from benchmarks.report import command
from tmac.runtime.streaming.memory import parse_memory

BLOCKS = {1: 8 << 20, 4: 1 << 20}  # readers -> bytes of a read
PROMPT = "The quick brown fox"


def sequential_rate(path: Path, readers: int = 1, block: int = 8 << 20) -> float:
    """Bytes per second of one reading of the whole file, past the page cache where the file system allows it."""
    size = path.stat().st_size // mmap.PAGESIZE * mmap.PAGESIZE
    with _opened(path) as descriptor:
        offsets = iter(range(0, size, block))

        def read(_: int) -> int:
            memory, count = mmap.mmap(-1, block), 0
            for offset in offsets:  # iterators of ranges hand out each offset once
                count += os.preadv(descriptor, [memory], offset)
            return count

        begin = time.perf_counter()
        with ThreadPoolExecutor(readers) as pool:
            total = sum(pool.map(read, range(readers)))
        return total / (time.perf_counter() - begin)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECT", 0))
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def compare(model: str, memory_limit: str, tokens: int, slower: int = 0, **options: Any) -> dict[str, Any]:
    """The rates of plain readings and of the model, in bytes per second, and the shares of the better plain one.

    Args:
        model: a checkpoint.
        memory_limit: that holds a part of it.
        tokens: to generate.
        slower: the most bytes per second that the model may read, to stand for a slower disk; 0: no limit.
        options: of `Engine.from_pretrained`.

    Raises:
        ValueError: the limit holds the whole model, or is too small.
    """
    with tmac.Engine.from_pretrained(model, memory_limit=memory_limit, **options) as engine:
        streamed = engine.streamed
        if streamed.statistics() is None:
            raise ValueError(f"--memory-limit: {memory_limit} hold the whole model: nothing is read")
        plain = {readers: sequential_rate(streamed.path, readers, block) for readers, block in BLOCKS.items()}
        engine.generate(PROMPT, max_new_tokens=2, ignore_eos=True)  # checksums are compared at the first reading
        streamed.slow_down(slower)
        before, begin = streamed.statistics(), time.perf_counter()
        engine.generate(PROMPT, max_new_tokens=tokens, ignore_eos=True)
        seconds, after = time.perf_counter() - begin, streamed.statistics()
        for readers, block in BLOCKS.items():
            plain[readers] = max(plain[readers], sequential_rate(streamed.path, readers, block))
    moved = {
        name: after[name] - before[name] for name in ("bytes_read", "passes", "seconds_reading", "seconds_waiting")
    }
    best = min(max(plain.values()), slower or float("inf"))
    reading = moved["bytes_read"] / moved["seconds_reading"]
    return {
        "plain": {str(readers): round(rate) for readers, rate in plain.items()},
        "reading": round(reading),
        "overall": round(moved["bytes_read"] / seconds),
        "reading_share": round(reading / best, 3),
        "overall_share": round(moved["bytes_read"] / seconds / best, 3),
        "seconds_per_pass": round(seconds / moved["passes"], 4),
        "waiting_share": round(moved["seconds_waiting"] / seconds, 3),
        "bytes_per_pass": after["bytes_per_pass"],
        "direct": after["direct"],
    }


def main(arguments: list[str] | None = None) -> int:
    """The command of the first lines. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.disk_rate", description="The disk's bandwidth and a model's.")
    parser.add_argument("model")
    parser.add_argument("--memory-limit", required=True)
    parser.add_argument("--slower", help="bytes per second that the model may read at most, 500M")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    slower = parse_memory("--slower", given.slower) if given.slower else 0
    result = compare(given.model, given.memory_limit, given.tokens, slower, context_length=1024)
    print(json.dumps(result, indent=1))
    if given.json is not None:
        about = {"command": command("benchmarks.disk_rate", arguments), "machine": machine(), **result}
        given.json.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
