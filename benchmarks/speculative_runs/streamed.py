"""The table of a model that is larger than memory: its own planes or another model as the draft, plain, and mapped."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.speculative_runs.in_memory import about, attempt, ms, opened
from benchmarks.speculative_runs.limits import Group, Limits, drop_cache
from benchmarks.speculative_runs.process import Measured, NoRowError, TooSmallError, llama_seconds
from benchmarks.speculative_runs.rows import MMAP, PLAIN, STREAMED, Row, RunFile, timed_row
from benchmarks.speculative_runs.setting import AS_IT_IS, Setting
from benchmarks.speculative_runs.texts import TEXTS
from tmac.runtime.streaming.memory import parse_memory

EVERYTHING = 1 << 60  # a limit that holds any model
PEER_TEXT = "prose"
ROUNDED_UP = 16 << 20  # what the needed limit may be short of, for the process differs from one to the next


class Engine:
    """A process under a limit.

    Args:
        setting: what is measured.
        limits: what the machine allows.
        weights: of the model.
        draft: its draft, or "plain".
        memory: bytes of the limit.

    Raises:
        TooSmallError: the limit is too small.
        NoRowError: it cannot be opened otherwise.
    """

    def __init__(self, setting: Setting, limits: Limits, weights: str, draft: str, memory: int) -> None:
        name, path = setting.engine_draft(draft), str(setting.models[weights])
        self.setting, self.draft, self.memory, self._stack = setting, draft, memory, ExitStack()
        try:
            self.group = self._stack.enter_context(Group(limits, group_name(f"{weights} {draft}"), memory))
            self._worker = self._stack.enter_context(Measured(self.group, setting.cache))
            plan = self._worker.ask("open", path=path, draft=name, memory_limit=memory, threads=setting.threads)
        except BaseException:
            self.close()
            raise
        self.packed, self.streamed = Path(plan["packed"]), int(plan["streamed"])

    def slow_down(self, disk: str) -> str:
        """Slows the disk down. Returns what does so."""
        rate = 0 if disk == AS_IT_IS else parse_memory("--disks", disk)
        if self.group.slow_down(self.packed, rate):
            return "block layer"
        self._worker.ask("slow_down", bytes_per_second=rate)
        return "reader"

    def write(self, text: str, tokens: int) -> dict[str, Any]:
        """A text, and what it took."""
        drop_cache(self.packed)
        return self._worker.ask("generate", text=text, tokens=tokens, speculative=self.draft != PLAIN)

    def close(self) -> None:
        """Ends the process."""
        self._stack.close()


def group_name(text: str) -> str:
    """A name of a folder."""
    return f"tmac-{os.getpid()}-" + "".join(letter if letter.isalnum() else "-" for letter in text)


class Target:
    """What is known of a model before it is limited.

    Args:
        setting: what is measured.
        weights: of the model.
    """

    def __init__(self, setting: Setting, weights: str) -> None:
        self._setting, self._weights = setting, weights

    @cached_property
    def expected(self) -> Mapping[str, list[int]]:
        """What it writes with all weights in memory."""
        with opened(self._setting, self._weights, PLAIN) as worker:
            request = {"tokens": self._setting.tokens, "speculative": False}
            texts = self._setting.streamed_texts
            return {text: worker.ask("generate", text=text, **request)["token_ids"] for text in texts}

    @cached_property
    def limit(self) -> int:
        """Bytes of a process that holds the share of the weights."""
        plan = self.prepare(PLAIN)
        return int(plan["total"] - (1 - self._setting.share) * plan["weights"])

    def prepare(self, draft: str) -> dict[str, Any]:
        """The plan with everything in memory. The packed file is there afterwards."""
        setting = self._setting
        request = {"path": str(setting.models[self._weights]), "draft": setting.engine_draft(draft)}
        with Measured(None, setting.cache) as worker:
            return worker.ask("open", **request, memory_limit=EVERYTHING, threads=setting.threads)


def streamed(setting: Setting, run: RunFile, limits: Limits, weights: str) -> None:
    """Rows for every draft, text and disk. Each draft is measured in turn with plain decoding under the same limit, the
    first one with the peer too, where there is one."""
    target = Target(setting, weights)
    for draft in setting.drafts_of(STREAMED, weights):
        keys = [(STREAMED, weights, draft, text, disk) for disk in setting.disks for text in setting.streamed_texts]
        attempt(run, keys, lambda keys=keys: _rows(setting, run, limits, target, keys))  # type: ignore[misc]


def _rows(
    setting: Setting, run: RunFile, limits: Limits, target: Target, keys: Sequence[tuple[str, ...]]
) -> Iterator[Row]:
    weights, draft = keys[0][1:3]
    setting.engine_draft(draft)  # there is one
    expected, memory = target.expected, target.limit
    target.prepare(draft)
    with ExitStack() as stack:
        try:
            drafted = Engine(setting, limits, weights, draft, memory)
        except TooSmallError as error:
            memory = error.least + ROUNDED_UP
            drafted = Engine(setting, limits, weights, draft, memory)
        stack.callback(drafted.close)
        plain = Engine(setting, limits, weights, PLAIN, memory)
        stack.callback(plain.close)
        peer = stack.enter_context(Group(limits, group_name(f"{weights} peer"), memory))
        for each in (plain, drafted):  # checksums are compared at the first reading
            each.write(setting.streamed_texts[0], 2)
        for key in keys:
            if run.has(key):
                continue
            text, disk = key[3:]
            throttle = {each.draft: each.slow_down(disk) for each in (plain, drafted)}
            measured = _in_turn(setting, limits, (plain, drafted), peer, key)
            _check(measured, expected[text])
            known = {"limit_bytes": memory, "throttle": throttle[draft] if disk != AS_IT_IS else ""}
            yield _row(key, measured, plain, drafted, known)


def _in_turn(
    setting: Setting, limits: Limits, engines: tuple[Engine, Engine], peer: Group, key: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]]:
    """What each run of each engine gave: the plain one, the one with a draft, and the peer."""
    _, weights, draft, text, disk = key
    first = setting.drafts_of(STREAMED, weights)[0]  # the peer is slow, and knows of no draft
    with_peer = (draft, text) == (first, PEER_TEXT) and setting.programs is not None and weights in setting.peers
    found: dict[str, list[dict[str, Any]]] = {each.draft: [] for each in engines}
    for number in range(setting.runs):
        for each in engines if number % 2 == 0 else engines[::-1]:
            tokens = min(setting.tokens, setting.few_tokens) if each.draft == PLAIN else setting.tokens
            found[each.draft].append(each.write(text, tokens))
            last = found[each.draft][-1]["seconds_per_token"]
            print(f"  {' '.join(key)}, run {number}, {each.draft}: {1000 * last:.1f} ms per token", flush=True)
        if with_peer:
            seconds = _peer_seconds(setting, limits, peer, weights, disk)
            if seconds is not None:
                print(f"  {' '.join(key)}, run {number}, {MMAP}: {1000 * seconds:.1f} ms per token", flush=True)
                found.setdefault(MMAP, []).append({"seconds_per_token": seconds})
    return found


def _peer_seconds(setting: Setting, limits: Limits, group: Group, weights: str, disk: str) -> float | None:
    """None where the limits cannot hold for a file that is mapped."""
    assert setting.programs is not None
    path, rate = setting.peers[weights], 0 if disk == AS_IT_IS else parse_memory("--disks", disk)
    if limits.memory is None or not (group.slow_down(path, rate) or not rate):
        return None
    drop_cache(path)
    prompt, tokens = TEXTS[PEER_TEXT].prompt, setting.few_tokens
    return llama_seconds(setting.programs, path, prompt, tokens, setting.threads, group)


def _check(measured: Mapping[str, list[dict[str, Any]]], expected: list[int]) -> None:
    """Raises NoRowError where a run gave other tokens than the model in memory."""
    for name, runs in measured.items():
        for each in runs:
            ids = each.get("token_ids")
            if ids is not None and ids != expected[: len(ids)]:
                place = next(i for i, pair in enumerate(zip(ids, expected, strict=False)) if pair[0] != pair[1])
                raise NoRowError(f"wrong tokens: {name} gives {ids[place]} as token {place}, not {expected[place]}")


def _row(
    key: tuple[str, ...],
    measured: Mapping[str, list[dict[str, Any]]],
    plain: Engine,
    drafted: Engine,
    known: Mapping[str, Any],
) -> Row:
    seconds = {name: [each["seconds_per_token"] for each in runs] for name, runs in measured.items()}
    runs = measured[drafted.draft]
    more = {
        **known,
        **about([each["speculation"] for each in runs]),
        "tokens": len(runs[0]["token_ids"]),
        "samples_ms": ms(seconds[drafted.draft]),
        "base_samples_ms": ms(seconds[PLAIN]),
        "pass_bytes": drafted.streamed,
        "base_pass_bytes": plain.streamed,
        "bytes_read": statistics.median(each["bytes_read"] for each in runs),
        "io_seconds": statistics.median(each["speculation"]["io_seconds"] for each in runs),
        "peak_bytes": max(each["peak_bytes"] or 0 for each in runs),
        "group_peak_bytes": drafted.group.peak(),
    }
    if MMAP in seconds:
        more |= {"mmap_ms": 1000 * statistics.median(seconds[MMAP]), "mmap_samples_ms": ms(seconds[MMAP])}
    return timed_row(key, seconds[PLAIN], seconds[drafted.draft], **more)
