"""Many texts over one decoder, one round of passes after the other. Knows no threads.

A pass with prompt rows, at most `chunk_size`, and a pass with one row of every text that goes on take turns. No text
depends on the others: the bits of a row are the same in every pass, and only rows that were evaluated as a prompt are
shared.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import numpy as np

from tmac.runtime.interrupts import allowed_interrupts
from tmac.runtime.native import Decoder, Floats, Ids, is_cache_full
from tmac.runtime.prefixes import WORTH_SHARING, Prefix, Prefixes, common_prefix
from tmac.runtime.speculation.speculator import Speculator
from tmac.runtime.task import Task

DECODE_ROWS = 16  # of one sequence in a pass, when a text is evaluated again


class Passes:
    """The tasks of a decoder.

    Args:
        decoder: used by one thread at a time.
        chunk_size: prompt rows in a pass.
        max_batch: tasks that have a sequence at a time; the others wait.
        kept_positions: tokens of evaluated prompts that stay in the cache when their tasks have ended.
        rope_key: length of a prompt -> what its rows' positions depend on; None: on nothing else.
        windowed: some layers forget old positions, so that a long sequence cannot be cut back to its prompt.
        num_threads: of a pass; 0: those of the process.
        speculator: guesses for a text that is generated alone; None: no text is guessed.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        chunk_size: int = 256,
        max_batch: int = 64,
        kept_positions: int = 4096,
        rope_key: Callable[[int], Hashable] | None = None,
        windowed: bool = False,
        num_threads: int = 0,
        speculator: Speculator | None = None,
    ) -> None:
        self.decoder, self.prefixes = decoder, Prefixes(decoder, kept_positions)
        self.chunk_size, self.max_batch = chunk_size, max_batch
        self._rope_key, self._windowed, self._num_threads = rope_key, windowed, num_threads
        self._speculator = speculator
        if speculator is not None:
            speculator.make_room = self.make_room
        self._waiting: list[Task] = []  # in the order of their tickets, as are the active ones
        self._active: list[Task] = []
        self._blocked = False  # the cache was full: nobody starts before somebody has ended
        self.ended = 0  # tasks

    def add(self, tasks: list[Task]) -> None:
        """Tasks that have come after all others."""
        self._waiting += tasks

    def round(self) -> None:
        """At most one pass with prompt rows and one with generated ones."""
        self.drop_cancelled()
        self._start_waiting()
        prompts = self._prompt_rows()
        if prompts:
            self._run(prompts, "prompt")
            self._draft_prompt(prompts)
        generated = self._generated_rows()
        if self._speculator is not None and len(generated) == 1 and self._is_speculated(*generated[0]):
            self._speculate(self._speculator, generated[0][0])
        elif generated:
            self._run(generated, "decode")

    def drop_cancelled(self) -> None:
        """Ends the tasks for which nobody waits."""
        for task in [*self._active, *self._waiting]:
            if task.abandoned():
                self._cancel(task)

    def fail_all(self, error: BaseException) -> None:
        """Ends every task with an error."""
        for task in [*self._active, *self._waiting]:
            self._fail(task, error)

    def clear(self) -> None:
        """Cancels every task and releases every sequence."""
        for task in [*self._active, *self._waiting]:
            self._cancel(task)
        self.drop_prefixes()

    def drop_prefixes(self) -> None:
        """Releases the kept prompts, the draft's too."""
        self.prefixes.clear()
        if self._speculator is not None:
            self._speculator.clear()

    def forward(self, seqs: list[int], tokens: list[Ids], phase: str, wanted: list[Ids], ropes: list[int]) -> Floats:
        """A pass of the decoder, which Ctrl-C may interrupt. `ropes`: final lengths of the prompts."""
        lengths = ropes if self._rope_key is not None and phase == "prompt" else None
        with allowed_interrupts():
            return self.decoder.forward(
                seqs, tokens, phase, wanted, rope_lengths=lengths, num_threads=self._num_threads
            )

    def rope_key(self, length: int) -> Hashable:
        """Prompts of these lengths share rows if their keys are equal."""
        return self._rope_key(length) if self._rope_key is not None else None

    def make_room(self) -> bool:
        """Releases the kept prompt that was used least recently; False if there is none."""
        return self.prefixes.drop_oldest()

    def _start_waiting(self) -> None:
        self._blocked = self._blocked and bool(self._active)
        for task in list(self._waiting):
            if self._blocked or len(self._active) >= self.max_batch:
                return
            if self._start(task):
                self._waiting.remove(task)
                self._active.append(task)
                self._active.sort(key=lambda task: task.ticket)

    def _start(self, task: Task) -> bool:
        """Gives a task a sequence that begins with what others have evaluated; False: it had better wait for them."""
        tokens, key = task.head[:-1], self._key(task)  # the last one is evaluated for its logits
        prefix, shared = self.prefixes.find(tokens, key)
        donor = prefix.seq if prefix is not None else None
        promised = 0
        for other in self._active:
            if other.seq is None or self._key(other) != key:
                continue
            common = common_prefix(other.head, tokens)
            there = min(common, self.decoder.length(other.seq))
            promised = max(promised, common)
            if there > shared:
                donor, shared = other.seq, there
        if promised >= shared + WORTH_SHARING:
            return False
        if shared < WORTH_SHARING or donor is None:
            task.seq, shared = self.decoder.create(), 0
        else:
            task.seq, shared = self._fork(donor, shared)
            if prefix is not None and donor == prefix.seq:
                self.prefixes.use(prefix)
        task.start(shared)
        return True

    def _fork(self, donor: int, length: int) -> tuple[int, int]:
        try:
            return self.decoder.fork(donor, length), length
        except ValueError:  # a window has dropped what the shorter sequence needs
            return self.decoder.create(), 0

    def _key(self, task: Task) -> Hashable:
        return self.rope_key(task.prompt_rows)

    def _prompt_rows(self) -> list[tuple[Task, int]]:
        """Tasks and how many prompt rows of each: half of them for what ends soonest, half for who came first."""
        left = {task: task.prompt_rows - self._length(task) for task in self._active}
        left = {task: rows for task, rows in left.items() if rows > 0}
        budget, chosen = self.chunk_size, dict.fromkeys(left, 0)
        for tasks, limit in ((sorted(left, key=left.__getitem__), budget - budget // 2), (list(left), budget)):
            room = min(limit, budget)
            for task in tasks:
                rows = min(left[task] - chosen[task], room)
                chosen[task] += rows
                room -= rows
                budget -= rows
        return [(task, rows) for task, rows in chosen.items() if rows]

    def _generated_rows(self) -> list[tuple[Task, int]]:
        """Tasks whose prompt is done and how many rows of each: one, more if a text is evaluated again."""
        found = []
        most = DECODE_ROWS if self._rope_key is None else 1
        for task in self._active:
            length = self._length(task)
            if length >= task.prompt_rows:
                found.append((task, min(len(task.tokens) - length, most)))
        return found

    def _length(self, task: Task) -> int:
        """Tokens that have been evaluated, but for the last one: its logits were lost if the pass was interrupted."""
        assert task.seq is not None
        length = self.decoder.length(task.seq)
        if length == len(task.tokens):
            length -= 1
            if not self.decoder.truncate(task.seq, length):
                self.decoder.release(task.seq)
                task.seq, length = self.decoder.create(), 0
        return length

    def _run(self, rows: list[tuple[Task, int]], phase: str) -> None:
        """A pass, and what its logits say. Makes room where the cache is full."""
        logits = None
        while logits is None and rows:
            try:
                logits = self._forward(rows, phase)
            except Exception as error:  # noqa: BLE001 - whoever waits learns of it
                if is_cache_full(error):
                    rows = self._make_room(rows, phase, error)
                    continue
                for task, _ in rows:
                    self._fail(task, error)
                return
        if logits is None:
            return
        number = 0
        for task, _ in rows:
            assert task.seq is not None
            length = self.decoder.length(task.seq)
            if phase == "prompt" and length == task.prompt_rows and self._windowed:
                self._keep(self.decoder.fork(task.seq, length), task)
            if length == len(task.tokens):
                if self._speculator is not None:
                    self._speculator.evaluated(task)
                self._accept(task, logits[number])
                number += 1

    def _forward(self, rows: list[tuple[Task, int]], phase: str) -> Floats:
        seqs, tokens, wanted, ropes = [], [], [], []
        for task, count in rows:
            assert task.seq is not None
            begin = self.decoder.length(task.seq)
            last = begin + count == len(task.tokens)
            seqs.append(task.seq)
            tokens.append(np.array(task.tokens[begin : begin + count], np.int32))
            wanted.append(np.array([count - 1] if last else [], np.int32))
            ropes.append(task.prompt_rows)
        return self.forward(seqs, tokens, phase, wanted, ropes)

    def _is_speculated(self, task: Task, rows: int) -> bool:
        return task.options.speculative and rows == 1

    def _draft_prompt(self, prompts: list[tuple[Task, int]]) -> None:
        """Lets the draft follow the prompt of a text that is alone."""
        task = prompts[0][0]
        if self._speculator is not None and self._active == [task] and self._is_speculated(task, 1):
            assert task.seq is not None
            self._speculator.prompt(task, self.decoder.length(task.seq))

    def _speculate(self, speculator: Speculator, task: Task) -> None:
        """One or several tokens of a text that is alone."""
        try:
            speculator.round(task, lambda: self._run([(task, 1)], "decode"), lambda logits: self._accept(task, logits))
        except Exception as error:  # noqa: BLE001 - whoever waits learns of it
            self._fail(task, error)

    def _accept(self, task: Task, logits: Floats) -> None:
        try:
            task.accept(logits)
        except Exception as error:  # noqa: BLE001 - of this task alone
            self._fail(task, error)
        except BaseException:
            self._fail(task, RuntimeError("[generate] interrupted between two tokens"))
            raise
        if task.finish_reason is not None:
            self._end(task)
        elif task.shifted:
            task.shifted = False
            self._put_back(task)

    def _make_room(self, rows: list[tuple[Task, int]], phase: str, error: Exception) -> list[tuple[Task, int]]:
        """What is left of a pass for which the cache is full: kept prompts go first, then the youngest task waits."""
        if self.make_room():
            return rows
        youngest = self._active[-1]
        if len(self._active) > 1:
            self._put_back(youngest)
            self._blocked = True
        elif phase == "decode":
            self._end(youngest, lambda: youngest.finish("length"))
        else:
            message = f"prompt: its {youngest.prompt_rows} tokens do not fit into the cache: {error}"
            self._fail(youngest, ValueError(message))
        return [(task, count) for task, count in rows if task is not youngest]

    def _put_back(self, task: Task) -> None:
        """Takes the sequence from a task; it is evaluated again later, in the same phases, to the same bits."""
        assert task.seq is not None
        self.decoder.release(task.seq)
        task.seq = None
        if self._speculator is not None:
            self._speculator.detach(task)
        self._active.remove(task)
        self._waiting.append(task)
        self._waiting.sort(key=lambda task: task.ticket)

    def _cancel(self, task: Task) -> None:
        self._end(task, lambda: task.finish("cancelled"))

    def _fail(self, task: Task, error: BaseException) -> None:
        self._end(task, lambda: task.fail(error), keep=False)

    def _end(self, task: Task, tell: Callable[[], None] = lambda: None, *, keep: bool = True) -> None:
        """Takes a task out, keeps its prompt or releases it, and tells whoever waits."""
        if task in self._active:
            self._active.remove(task)
            self._blocked = False
        elif task in self._waiting:
            self._waiting.remove(task)
        else:
            return
        if task.seq is not None:
            self._retire(task.seq, task, keep)
            task.seq = None
        if self._speculator is not None:
            self._speculator.close(task)
        self.ended += 1
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - a callback's
            task.fail(error)

    def _retire(self, seq: int, task: Task, keep: bool) -> None:
        length = min(self.decoder.length(seq), task.prompt_rows)
        if keep and length >= WORTH_SHARING and self.decoder.truncate(seq, length):
            self._keep(seq, task)
        else:
            self.decoder.release(seq)

    def _keep(self, seq: int, task: Task) -> None:
        length = self.decoder.length(seq)
        if length < WORTH_SHARING:
            self.decoder.release(seq)
        else:
            self.prefixes.keep(Prefix(seq, task.head[:length], self._key(task)))
