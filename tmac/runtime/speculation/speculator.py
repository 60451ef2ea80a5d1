"""One round of a text: guess, verify in one pass of the target, and let the text's own sampler walk the tree.

The token at each node is drawn from the target's logits by the sampler of the text, with its own stream of random
numbers, penalties and constraint. Where it is a child, the walk goes on there. So the text is the one of plain
decoding, token by token, whatever the draft guesses: decoding passes give the same bits for a row in a tree as alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from tmac.runtime.native import Decoder, Floats, Ids, is_cache_full
from tmac.runtime.speculation.controller import Controller, TextControl
from tmac.runtime.speculation.drafts import Draft, DraftText
from tmac.runtime.speculation.grow import Begun, Grown, Growth
from tmac.runtime.speculation.pipeline import Beside, SecondThread, Work
from tmac.runtime.speculation.rows import RunTree, tree_runner
from tmac.runtime.speculation.stats import SpeculationStats

MOST_ROWS = 16  # of a pass: as many as the kernels for generated tokens take at a time


class SpeculatedText(Protocol):
    """What a task is here."""

    tokens: list[int]
    seq: int | None
    speculation: SpeculationStats | None

    @property
    def generated(self) -> int:
        """Tokens so far."""

    @property
    def room(self) -> int:
        """Tokens that may still come."""

    @property
    def abandoned(self) -> Callable[[], bool]:
        """Whether nobody waits any more."""


@dataclass
class _State:
    """Of one text."""

    control: TextControl
    stats: SpeculationStats
    text: DraftText | None = None
    seq: int | None = None  # that the text was opened for
    failed: bool = False
    begun: Begun | None = None  # what is there of the next tree
    plain_since: float | None = None  # a plain pass runs, and its time is counted up to here


class Speculator:
    """Rounds of the texts of one decoder, one text at a time.

    Args:
        draft: guesses.
        run: `forward_tree` of the target's decoder.
        keep: `Decoder.keep`.
        vocab_size: of the target.
        controller: what has been measured already.
        clock: seconds.
        io: seconds and bytes that the target's passes have waited for a disk and read from it, since the last call.
        pipeline: the draft, if it is `separate`, goes on in a thread of its own while passes of the target verify.

    Attributes:
        make_room: called where the target's cache is full; whether something in it was given up.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        run: RunTree,
        keep: Callable[[int, Sequence[int]], None],
        vocab_size: int,
        controller: Controller | None = None,
        clock: Callable[[], float] = time.perf_counter,
        io: Callable[[], tuple[float, int]] | None = None,
        pipeline: bool = False,
    ) -> None:
        self.draft, self.controller = draft, controller or Controller(MOST_ROWS)
        self._run_once, self._keep, self._vocab_size, self._clock, self._io = run, keep, vocab_size, clock, io
        self.make_room: Callable[[], bool] = lambda: False
        self.pipeline = pipeline and draft.separate
        self._second = SecondThread()
        self._states: dict[SpeculatedText, _State] = {}

    def prompt(self, task: SpeculatedText, end: int) -> None:
        """The target has evaluated the first `end` tokens of a prompt; the draft does so too, if guesses may pay.

        Where they did not and do later, the draft catches up.
        """
        state, begin = self._open(task), self._clock()
        most = task.room - 1 - (task.generated == 0)  # behind the prompt comes a token that nobody guesses

        def read(text: DraftText) -> None:
            ready = most if self.pipeline else 0  # steps take the text no time there
            if most > 0 and (text.kind is None or state.control.draft_depth(text.kind, 0, most, ready)):
                text.prompt(task.tokens, end)

        self._guard(state, read)
        state.stats.draft_seconds += self._clock() - begin

    def round(self, task: SpeculatedText, plain: Callable[[], None], accept: Callable[[Floats], None]) -> None:
        """One or several tokens of a text, whose tokens but the last have been evaluated.

        Args:
            task: the text.
            plain: a pass for the last token, and what its logits say.
            accept: takes the logits of the last token, f32 `[vocab]`. Both may end the text: it has no sequence then.

        Raises:
            Exception: of the target's pass.
        """
        state = self._open(task)
        if self._io is not None:
            self._io()  # what prompts and other texts have read
        growth = None if state.control.rests() else self._grow(state, task)
        state.begun = None
        if growth is not None and growth.grown.nodes and self._verify(state, task, growth, accept):
            return
        grown = growth.grown if growth is not None else None
        begin, before = self._clock(), task.generated
        state.stats.passes += 1
        state.stats.budgets.append(0)
        state.stats.tokens += 1
        state.plain_since = begin
        try:
            plain()
        finally:
            self._count_plain(state)
            seconds, state.plain_since = state.plain_since - begin, None
        if task.generated > before:
            if growth is not None and grown is not None:
                state.control.learn(grown.tree, 0, task.tokens[-1])
                if self.pipeline and task.seq is not None:
                    self._follow(state, task, growth, [0], 1)
            state.control.plain_done(seconds, grown.seconds if grown is not None else 0.0)
        else:
            state.stats.tokens -= 1

    def evaluated(self, task: SpeculatedText) -> None:
        """A pass has ended; what its logits say is not known yet. So the last chunk's statistics hold the last pass."""
        state = self._states.get(task)
        if state is not None and state.plain_since is not None:
            self._count_plain(state)

    def detach(self, task: SpeculatedText) -> None:
        """The text has lost its sequence; it goes on later."""
        state = self._states.get(task)
        if state is not None and state.text is not None:
            text, state.text, state.begun = state.text, None, None
            try:
                text.close()
            except Exception as error:  # noqa: BLE001 - of the draft, which the text does without
                state.failed, state.stats.error = True, _message(error)

    def close(self, task: SpeculatedText) -> None:
        """The text has ended."""
        self.detach(task)
        self._states.pop(task, None)

    def clear(self) -> None:
        """Releases what is kept for later texts, and ends the thread."""
        self._second.close()
        self.draft.clear()

    def _open(self, task: SpeculatedText) -> _State:
        state = self._states.get(task)
        if state is None:
            state = self._states[task] = _State(self.controller.start(), SpeculationStats(self.draft.name))
            task.speculation = state.stats
        if state.seq != task.seq:
            self.detach(task)
        if state.text is None and not state.failed and task.seq is not None:
            state.seq = task.seq
            try:
                state.text = self.draft.open(task.seq)
            except Exception as error:  # noqa: BLE001 - of the draft
                state.failed, state.stats.error = True, _message(error)
        return state

    def _guard(self, state: _State, call: Callable[[DraftText], None]) -> None:
        """Calls the draft; where it fails, the text goes on without it. A full cache may have room again later."""
        if state.text is None:
            return
        try:
            call(state.text)
        except Exception as error:  # noqa: BLE001 - whatever a draft does, the text is the same
            self._leave(state, error)

    def _leave(self, state: _State, error: Exception) -> None:
        if state.text is not None and not is_cache_full(error):
            text, state.text, state.failed = state.text, None, True
            state.stats.error = _message(error)
            with suppress(Exception):  # it has failed already
                text.close()
        elif is_cache_full(error) and not self.draft.separate:
            self.make_room()

    def _grow(self, state: _State, task: SpeculatedText) -> Growth | None:
        """A tree that has grown, None if there can be none."""
        most_depth = task.room - 1
        if state.text is None or most_depth < 1:
            return None
        begun = state.begun if state.begun is not None and state.begun.end == len(task.tokens) else None
        found: list[Growth] = []

        def grow(text: DraftText) -> None:
            text.sync(task.tokens)
            growth = Growth(
                state.control,
                text,
                task.tokens[-1],
                vocab_size=self._vocab_size,
                most_depth=most_depth,
                clock=self._clock,
                begun=begun,
            )
            growth.run()
            found.append(growth)

        self._guard(state, grow)
        if not found:
            return None
        state.stats.draft_passes += found[0].grown.steps
        state.stats.draft_seconds += found[0].grown.seconds
        return found[0]

    def _verify(self, state: _State, task: SpeculatedText, growth: Growth, accept: Callable[[Floats], None]) -> bool:
        """The target's pass, and the walk. False, and nothing has happened, if the cache has no room for the tree."""
        assert task.seq is not None
        grown, begin = growth.grown, self._clock()
        tree = grown.tree
        tokens, parents, nodes = tree.pruned(grown.nodes)
        try:
            with self._second.running(self._ahead(state, growth, begin)) as beside:
                logits = self._run(task.seq, tokens, parents, first=0, draft=False)
        except Exception as error:
            if is_cache_full(error):
                return False
            raise
        verified = self._clock()
        self._count_ahead(state, growth, beside)
        expected = state.control.passes.of(len(nodes))
        state.control.passes.add(len(nodes), verified - begin)
        state.stats.verify_seconds += verified - begin
        state.stats.verified([tree.depths[node] for node in grown.nodes])
        self._count_io(state)
        before = task.generated
        rows = self._walk(state, task, grown, nodes, logits, accept)
        produced = task.generated - before
        walked = self._clock()
        if produced:
            state.control.passes.token.add((walked - verified) / produced)
        if task.seq is not None:
            self._keep(task.seq, rows)
            self._follow(state, task, growth, [nodes[row] for row in rows], produced)
        after = self._clock() - verified
        state.control.tree_done(produced, verified - begin + after + grown.seconds, expected + after + grown.expected)
        if grown.steps or grown.ready:
            depth = max(tree.depths[node] for node in grown.nodes)
            state.control.adapt_alpha(grown.frontier, len(rows) - 1, depth)
        return True

    def _ahead(self, state: _State, growth: Growth, begin: float) -> Work | None:
        """What the draft does during the pass that has begun: no step that would probably end after the pass."""
        if not self.pipeline or state.text is None:
            return None
        passes = state.control.passes
        end = begin + passes.of(len(growth.grown.nodes) + 1) if passes.known else math.inf

        def work(stopped: Callable[[], bool]) -> None:
            steps, since = 0, self._clock()

            def is_over() -> bool:
                nonlocal steps
                now = self._clock()
                steps, before = steps + 1, steps
                return stopped() or (before > 0 and now + (now - since) / before > end)

            growth.ahead(is_over)

        return work

    def _count_ahead(self, state: _State, growth: Growth, beside: Beside) -> None:
        state.stats.ahead_seconds += beside.seconds
        state.stats.ahead_passes += len(growth.ahead_nodes)
        if beside.error is not None:
            self._leave(state, beside.error)

    def _follow(self, state: _State, task: SpeculatedText, growth: Growth, path: list[int], produced: int) -> None:
        """The draft keeps what was right: the path, and in a pipeline what lies behind the token after it."""
        tree = growth.grown.tree
        child = tree.child(path[-1], task.tokens[-1]) if self.pipeline and produced == len(path) else None
        if child is None:
            self._guard(state, lambda text: text.kept(tree, path))
            return
        rest, origin = tree.subtree(child, state.control.acceptance.chance)
        self._guard(state, lambda text: text.carried(tree, path, rest, origin))
        there = {old: node for node, old in enumerate(origin)}
        followed = {there[node] for node in growth.grown.followed if node in there}
        state.stats.ahead_kept += sum(node in there for node in growth.ahead_nodes)
        state.begun = Begun(rest, followed, len(task.tokens))

    def _walk(
        self,
        state: _State,
        task: SpeculatedText,
        grown: Grown,
        nodes: list[int],
        logits: Floats,
        accept: Callable[[Floats], None],
    ) -> list[int]:
        """Rows of the path that the text takes, from the root."""
        tree, place = grown.tree, {node: row for row, node in enumerate(nodes)}
        node, rows = 0, [0]
        while True:
            before = task.generated
            state.stats.tokens += 1  # before the chunk that may be the last one
            accept(logits[rows[-1]])
            if task.generated == before:
                state.stats.tokens -= 1
                return rows
            token = task.tokens[-1]
            state.control.learn(tree, node, token)
            child = tree.child(node, token)
            if task.seq is None or child not in place or task.abandoned():
                return rows
            assert child is not None
            node = child
            rows.append(place[node])
            state.stats.accepted[tree.depths[node] - 1] += 1

    def _run(self, seq: int, tokens: Ids, parents: Ids, *, first: int, draft: bool) -> Floats:
        """As `run`. Where the cache is full, once more if there is something to give up."""
        try:
            return self._run_once(seq, tokens, parents, first=first, draft=draft)
        except Exception as error:
            if not is_cache_full(error) or not self.make_room():
                raise
        return self._run_once(seq, tokens, parents, first=first, draft=draft)

    def _count_plain(self, state: _State) -> None:
        assert state.plain_since is not None
        now = self._clock()
        state.stats.plain_seconds += now - state.plain_since
        state.plain_since = now
        self._count_io(state)

    def _count_io(self, state: _State) -> None:
        if self._io is not None:
            seconds, count = self._io()
            state.stats.io_seconds += seconds
            state.stats.bytes_read += count


def make_speculator(
    decoder: Decoder,
    draft: Draft | None,
    controller: Controller | None,
    vocab_size: int,
    num_threads: int,
    io: Callable[[], tuple[float, int]] | None = None,
    *,
    pipeline: bool = False,
) -> Speculator | None:
    """For a decoder and a draft; None without a draft. Raises ValueError where the decoder evaluates no trees."""
    if draft is None:
        return None
    if not hasattr(decoder, "forward_tree"):
        raise ValueError(f"draft: {draft.name} needs a decoder with forward_tree, found {type(decoder).__name__}")
    return Speculator(
        draft,
        run=tree_runner(decoder, num_threads),
        keep=decoder.keep,
        vocab_size=vocab_size,
        controller=controller,
        io=io,
        pipeline=pipeline,
    )


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
