"""How fast a model evaluates prompts and generates, beside what the memory allows in the same minute."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from tmac import _core
from tmac.runtime.energy import CostMeter

PROBE_BYTES = 512 << 20  # more than any cache holds
CacheType = Literal["f32", "f16", "int8"]
ELEMENT_BYTES: Mapping[str, int] = {"f32": 4, "f16": 2, "int8": 1}
STAGES = ("embedding", "input", "qkv", "attention", "output", "gate_up", "down", "experts", "head")


@dataclass(frozen=True)
class Case:
    """What is timed, in llama-bench's words.

    Args:
        prompt: tokens evaluated as a prompt; 0: none.
        generated: tokens evaluated one at a time; 0: none.
        depth: positions that are in the cache before.
    """

    prompt: int
    generated: int
    depth: int = 0

    @property
    def name(self) -> str:
        """As llama-bench writes it: "pp128", "tg32 @ d4096"."""
        text = f"pp{self.prompt}" if self.prompt else f"tg{self.generated}"
        return f"{text} @ d{self.depth}" if self.depth else text

    @property
    def tokens(self) -> int:
        """How many tokens a run evaluates while the clock runs."""
        return self.prompt + self.generated


def cases(prompts: Iterable[int], generated: Iterable[int], depths: Iterable[int]) -> list[Case]:
    """Every depth with every prompt, and with every number of generated tokens; zeros are left out."""
    found = []
    for depth in depths:
        found += [Case(count, 0, depth) for count in prompts if count]
        found += [Case(0, count, depth) for count in generated if count]
    return found


def cache_bytes(config: Mapping[str, Any], cache_type: str, position: int) -> int:
    """Bytes of keys and values that the token at `position` reads, its own included.

    Args:
        config: of the runtime, as in `ModelDescription`.
        cache_type: "f32", "f16" or "int8".
        position: from 0 on.
    """
    row = config["num_kv_heads"] * (config["head_dim"] * ELEMENT_BYTES[cache_type] + 4 * (cache_type == "int8"))
    return sum(2 * row * min(window or position + 1, position + 1) for window in config["windows"])


class ReadProbe:
    """The read bandwidth of the memory: passes over a buffer that no cache holds."""

    def __init__(self, nbytes: int = PROBE_BYTES) -> None:
        self.buffer = np.ones(nbytes, np.uint8)

    def gb_per_second(self, threads: int) -> float:
        """The better of reading in one stream and in four: which is faster depends on the CPU."""
        return max(self._pass(threads, streams) for streams in (1, 4))

    def _pass(self, threads: int, streams: int) -> float:
        begin = time.perf_counter()
        _core.read_pass(self.buffer, threads, streams)
        return self.buffer.nbytes / (time.perf_counter() - begin) / 1e9


class Subject:
    """A model under test.

    Args:
        model: its weights.
        config: the runtime's configuration that it was built with.
        cache_type: of keys and values: "f32", "f16" or "int8".
        chunk_size: tokens of a prompt that are evaluated together.
    """

    def __init__(
        self, model: _core.Model, config: Mapping[str, Any], cache_type: CacheType = "f16", chunk_size: int = 256
    ) -> None:
        self.model, self.config, self.cache_type, self.chunk_size = model, config, cache_type, chunk_size
        self.decoder = _core.Decoder(model, cache_type=cache_type)
        self.tokens = np.random.default_rng(0).integers(0, config["vocab_size"], 4096, dtype=np.int32)
        self._filled: dict[int, int] = {}

    def run(self, test: Case, threads: int) -> float:
        """Seconds of one run. Raises ValueError where the context is too short for it."""
        if test.depth + test.tokens > self.config["context_length"]:
            raise ValueError(f"{test.name}: the model's context is {self.config['context_length']} positions")
        sequence = self.decoder.fork(self._filled_to(test.depth), test.depth)
        try:
            begin = time.perf_counter()
            if test.prompt:
                self._prompt(sequence, test.prompt, threads)
            self._generate(sequence, test.generated, threads)
            return time.perf_counter() - begin
        finally:
            self.decoder.release(sequence)

    def bytes_per_token(self, test: Case) -> int:
        """What a generated token of the test reads: weights, keys and values; the mean over its tokens."""
        positions = range(test.depth, test.depth + test.generated)
        cached = sum(cache_bytes(self.config, self.cache_type, position) for position in positions)
        return int(self.model.bytes_per_token) + cached // max(1, test.generated)

    def core_seconds(self) -> float:
        """CPU time of this process so far."""
        return time.process_time()

    def profile(self, test: Case, threads: int) -> dict[str, float]:
        """Seconds per pass of each stage of a run, of everything beside the stages ("rest"), and of all ("total")."""
        self.run(test, threads)
        self.decoder.take_profile()
        self.decoder.profile(True)
        try:
            self.run(test, threads)
        finally:
            self.decoder.profile(False)
        found = self.decoder.take_profile()
        passes = max(1, found["passes"])
        stages = {stage: found[stage] / passes for stage in STAGES}
        total = found["total"] / passes
        return {**stages, "rest": total - sum(stages.values()), "total": total}

    def _filled_to(self, depth: int) -> int:
        """A sequence of so many positions, which are evaluated once, with all threads."""
        if depth not in self._filled:
            self._filled[depth] = self.decoder.create()
            self._prompt(self._filled[depth], depth, 0)
        return self._filled[depth]

    def _prompt(self, sequence: int, count: int, threads: int) -> None:
        for begin in range(0, count, self.chunk_size):
            ids = np.arange(begin, min(begin + self.chunk_size, count)) % len(self.tokens)
            last = begin + len(ids) == count
            wanted = np.array([len(ids) - 1] if last else [], np.int32)
            self.decoder.forward([sequence], [self.tokens[ids]], "prompt", [wanted], num_threads=threads)

    def _generate(self, sequence: int, count: int, threads: int) -> None:
        wanted = np.zeros(1, np.int32)
        for step in range(count):
            at = step % len(self.tokens)
            token = self.tokens[at : at + 1]
            self.decoder.forward([sequence], [token], "decode", [wanted], num_threads=threads)


class Runner(Protocol):
    """What `measure` times: a `Subject`, or another engine."""

    def run(self, test: Case, threads: int) -> float:
        """Seconds of one run."""

    def bytes_per_token(self, test: Case) -> int:
        """What a generated token of the test reads."""

    def core_seconds(self) -> float:
        """CPU time of all its threads so far."""


@dataclass
class Result:
    """The runs of one test with one number of threads.

    Args:
        runner: what ran.
        test: what was timed.
        threads: of the model and of the reading passes.
        bytes_per_token: that a generated token reads; None for prompts, which are not held to the bandwidth.
        samples: tokens per second of each run.
        reads: GB/s of the memory around each run.
        core_seconds: CPU time of all threads, of all runs together.
        joules: of the CPU's packages, other processes' included; None where no counter can be read.
    """

    runner: Runner
    test: Case
    threads: int
    bytes_per_token: int | None = None
    samples: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)
    core_seconds: float = 0.0
    joules: float | None = None

    @property
    def median(self) -> float:
        """Tokens per second."""
        return statistics.median(self.samples)

    @property
    def read_gb_per_second(self) -> float:
        """The median of the memory's read bandwidth."""
        return statistics.median(self.reads)

    @property
    def limit(self) -> float | None:
        """Tokens per second if nothing but reading took time; None for prompts."""
        return None if self.bytes_per_token is None else 1e9 * self.read_gb_per_second / self.bytes_per_token

    @property
    def share_of_limit(self) -> float | None:
        """The median over the runs, each beside the bandwidth of its own minute; None for prompts."""
        if self.bytes_per_token is None:
            return None
        pairs = zip(self.samples, self.reads, strict=True)
        return statistics.median(rate * self.bytes_per_token / (1e9 * read) for rate, read in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, under llama-bench's names where it has one."""
        tokens = self.test.tokens * max(1, len(self.samples))
        return {
            "test": self.test.name,
            "n_prompt": self.test.prompt,
            "n_gen": self.test.generated,
            "n_depth": self.test.depth,
            "n_threads": self.threads,
            "median_ts": self.median,
            "min_ts": min(self.samples),
            "max_ts": max(self.samples),
            "samples_ts": self.samples,
            "bytes_per_token": self.bytes_per_token,
            "read_gb_per_s": self.read_gb_per_second,
            "limit_ts": self.limit,
            "share_of_limit": self.share_of_limit,
            "core_seconds_per_token": self.core_seconds / tokens,
            "joules_per_token": None if self.joules is None else self.joules / tokens,
        }


def measure(
    runners: Sequence[Runner],
    wanted: Sequence[tuple[Case, int]],
    repetitions: int,
    probe: ReadProbe,
    meter: Callable[[], CostMeter] = CostMeter,
) -> list[Result]:
    """Every test by every runner, all in turn, so that a busy minute slows all of it.

    Args:
        runners: what is compared.
        wanted: the tests, each with a number of threads.
        repetitions: timed runs of each; one more before them is not timed.
        probe: reads before and after each run.
        meter: makes what counts energy.

    Returns:
        the runners' results beside each other, in the order of the tests.
    """
    results = [Result(runner, test, threads) for test, threads in wanted for runner in runners]
    meters = [meter() for _ in results]
    for result in results:
        if result.test.generated:
            result.bytes_per_token = result.runner.bytes_per_token(result.test)
        result.runner.run(result.test, result.threads)
    for _ in range(repetitions):
        for result, energy in zip(results, meters, strict=True):
            before = probe.gb_per_second(result.threads)
            busy = result.runner.core_seconds()
            energy.start()
            seconds = result.runner.run(result.test, result.threads)
            energy.stop()
            result.core_seconds += result.runner.core_seconds() - busy
            result.reads.append((before + probe.gb_per_second(result.threads)) / 2)
            result.samples.append(result.test.tokens / seconds)
    for result, energy in zip(results, meters, strict=True):
        result.joules = energy.total if energy.unit == "J" else None
    return results
