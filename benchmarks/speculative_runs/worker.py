"""An engine in a process of its own, so that limits hold for it alone: one JSON request a line, one answer a line."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speculative_runs.texts import TEXTS
from tmac.runtime.draft_speed import compare
from tmac.runtime.engine import Engine
from tmac.runtime.speculation.rows import tree_runner

CONTEXT = 1024  # positions of a text
PASS_PROMPT = 64  # tokens before the passes that are timed
NO_ROWS = np.empty(0, np.int32)


class Worker:
    """Answers requests; `open` comes first."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.threads = 0

    def open(self, path: str, draft: str | None, memory_limit: int | None, threads: int) -> dict[str, Any]:
        """Loads a checkpoint. Gives the plan of its memory, where there is a limit."""
        self.threads = threads
        options: dict[str, Any] = {"draft": draft, "memory_limit": memory_limit, "num_threads": threads}
        self.engine = Engine.from_pretrained(path, context_length=CONTEXT, kept_positions=0, max_batch=1, **options)
        plan = None if self.engine.streamed is None else self.engine.streamed.plan
        if plan is None:
            return {}
        return {
            "packed": str(self.engine.streamed.path),
            "total": plan.total,
            "weights": plan.weights + plan.embedding + plan.fixed["head"],
            "streamed": plan.streamed,
        }

    def compare(self, texts: Sequence[str], tokens: int, runs: int, draft: bool) -> dict[str, Any]:
        """`tmac.runtime.draft_speed.compare`."""
        counts: dict[str, Any] = {"max_new_tokens": tokens, "repetitions": runs, "draft": draft}
        found = {}
        for name in texts:
            text = TEXTS[name]
            (one,) = compare(self.engine, {name: text.prompt}, **counts, **text.options)
            found[name] = one.to_dict()
        return found

    def generate(self, text: str, tokens: int, speculative: bool) -> dict[str, Any]:
        """One text, and what it took."""
        self.engine.drop_prompts()
        before = self._read()
        options = {"max_new_tokens": tokens, "speculative": speculative, "ignore_eos": True, **TEXTS[text].options}
        result = self.engine.generate(TEXTS[text].prompt, **options)
        return {
            "token_ids": result.token_ids,
            "seconds_per_token": 1 / result.timings.generated_tokens_per_second,
            "bytes_read": self._read() - before,
            "peak_bytes": peak_bytes(),
            "speculation": result.speculation and result.speculation.to_dict(),
        }

    def slow_down(self, bytes_per_second: int) -> dict[str, Any]:
        """The reader's own throttle."""
        self.engine.streamed.slow_down(bytes_per_second)
        return {}

    def passes(self, rows: Sequence[int], runs: int) -> dict[str, Any]:
        """Seconds of passes over so many tokens in turn, once their logits have the bits of passes over one.

        Raises:
            RuntimeError: they have not.
        """
        ids = self._prompt_ids("code", PASS_PROMPT + max(rows))
        behind = np.array(ids[PASS_PROMPT:], np.int32)
        seconds: dict[int, list[float]] = {count: [] for count in rows}
        with self.engine.exclusive() as decoder:
            run, seq = tree_runner(decoder, self.threads), decoder.create()
            try:
                self._prefill(decoder, seq, ids[:PASS_PROMPT])
                self._check(decoder, run, seq, behind)
                for number in range(runs + 1):
                    for count in rows if number % 2 == 0 else reversed(rows):
                        begin = time.perf_counter()
                        run(seq, *chain(behind[:count]), first=0, draft=False)
                        if number:
                            seconds[count].append(time.perf_counter() - begin)
            finally:
                decoder.release(seq)
        return {str(count): times for count, times in seconds.items()}

    def agreement(self, ids: Sequence[int], first: int) -> dict[str, Any]:
        """How often the target's planes would have guessed a token of a text, given the target's keys and values.

        Args:
            ids: of the text.
            first: of its tokens, that is guessed.
        """
        right = []
        with self.engine.exclusive() as decoder:
            run, seq = tree_runner(decoder, self.threads), decoder.create()
            try:
                self._prefill(decoder, seq, ids[: first - 1])
                for token, following in zip(ids[first - 1 :], ids[first:], strict=False):
                    one = np.array([token], np.int32)
                    logits = run(seq, *chain(one), first=0, draft=True)
                    right.append(int(logits[-1].argmax()) == following)
                    decoder.forward([seq], [one], "decode", [NO_ROWS], num_threads=self.threads)
            finally:
                decoder.release(seq)
        return {"share": sum(right) / len(right), "tokens": len(right)}

    def guesses(self, ids: Sequence[int], first: int) -> dict[str, Any]:
        """The same for this engine's own model, as the draft of another one's text."""
        logits = self.engine.logits(list(ids[:-1]))[first - 1 :]
        right = logits.argmax(1) == np.array(ids[first:])
        return {"share": float(right.mean()), "tokens": len(right)}

    def encode(self, text: str) -> dict[str, Any]:
        """Ids of a prompt."""
        return {"ids": self._prompt_ids(text, None)}

    def _prompt_ids(self, text: str, count: int | None) -> list[int]:
        ids: list[int] = self.engine.tokenizer.encode(TEXTS[text].prompt)
        while count is not None and len(ids) < count:
            ids = ids * 2
        return ids[:count]

    def _read(self) -> int:
        found = self.engine.streamed.statistics() if self.engine.streamed is not None else None
        return found["bytes_read"] if found else 0

    def _prefill(self, decoder: Any, seq: int, ids: Sequence[int]) -> None:
        decoder.forward([seq], [np.array(ids, np.int32)], "prompt", [NO_ROWS], num_threads=self.threads)

    def _check(self, decoder: Any, run: Any, seq: int, ids: Any) -> None:
        found, other = run(seq, *chain(ids), first=0, draft=False), decoder.fork(seq, decoder.length(seq))
        try:
            for place in range(len(ids)):
                wanted = np.zeros(1, np.int32)
                one = decoder.forward([other], [ids[place : place + 1]], "decode", [wanted], num_threads=self.threads)
                if not np.array_equal(one[0], found[place]):
                    raise RuntimeError(f"[passes] row {place} of {len(ids)} has other bits than a pass over one token")
        finally:
            decoder.release(other)


def peak_bytes() -> int | None:
    """The most memory that this process has had; None where the system does not say.

    `ru_maxrss` is no help: it begins with what the process had that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)


def chain(ids: Any) -> tuple[Any, Any]:
    """Tokens that follow one another, as a tree."""
    return ids, np.arange(-1, len(ids) - 1, dtype=np.int32)


REQUESTS = ("open", "compare", "generate", "slow_down", "passes", "agreement", "guesses", "encode")


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """What a request gives, or {"error", "kind"}."""
    what = request.pop("do")
    if what not in REQUESTS:
        return {"error": f"expected one of {', '.join(REQUESTS)}, found {what}", "kind": "ValueError"}
    try:
        found: dict[str, Any] = getattr(worker, what)(**request)
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        return {"error": str(error), "kind": type(error).__name__}
    return found


def main() -> int:
    """Answers until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")  # what a library prints must not come between them
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), file=answers, flush=True)
    if worker.engine is not None:
        worker.engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
