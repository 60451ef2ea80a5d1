"""Another, smaller model as the draft: its own decoder and KV cache, the target's vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tmac.runtime.interrupts import allowed_interrupts
from tmac.runtime.native import Decoder, is_cache_full
from tmac.runtime.prefixes import WORTH_SHARING, Prefix, Prefixes, common_prefix
from tmac.runtime.speculation.drafts import Guess
from tmac.runtime.speculation.rows import RunTree, TreeRows, tree_runner
from tmac.runtime.speculation.tree import TokenTree

CHUNK = 256  # rows of a pass of the prompt
DECODE_ROWS = 16  # up to so many take the kernels for generated tokens
FAR = 128  # so many tokens behind, the draft reads only the end of the text
WINDOW = 64  # which are so many tokens


class ModelText:
    """One text.

    Args:
        model: the draft's decoder and what it keeps.
        kind: for the guesses.
    """

    def __init__(self, model: ModelDraft, kind: str) -> None:
        self.kind: str | None = kind
        self._model = model
        self._rows = TreeRows(tree_runner(model.decoder, model.num_threads), draft=False)
        self._run_alone = tree_runner(model.decoder, 1)
        self._seq: int | None = None
        self._source: list[int] = []
        self._window = min(WINDOW, max(model.context_length // 2, 1))
        self._begin = 0  # of the text, where the sequence begins
        self._end = 0  # tokens of the text up to where it ends

    def sync(self, tokens: list[int]) -> None:
        """The text so far. Cuts the sequence back where the text is another one."""
        if not self._goes_on(tokens):
            self._settle()
        if tokens is not self._source:
            if self._seq is not None:
                common = common_prefix(np.array(self._source[: self._end]), np.array(tokens))
                self._cut(min(common, self._end))
            self._source = tokens
        if self._seq is not None and self._end >= len(tokens):
            self._cut(len(tokens) - 1)

    def behind(self) -> int:
        """Tokens that `catch_up` would evaluate."""
        if self._rows.trunk:
            return 0
        left = len(self._source) - 1 - self._end
        return self._window if self._must_restart(left) else left

    def prompt(self, tokens: list[int], end: int) -> None:
        """Evaluates a prompt from its beginning, however long it is."""
        self.sync(tokens)
        self._settle()
        if len(tokens) <= self._model.context_length:
            self._evaluate(min(end, len(tokens) - 1), "prompt")

    def catch_up(self) -> None:
        """Evaluates all tokens but the last; of a text that the draft has not followed, only the end."""
        if self._rows.trunk:
            return
        last = len(self._source) - 1
        if self._must_restart(last - self._end):
            self.close()
            self._begin = self._end = max(last - self._window, 0)
        self._evaluate(last)

    def free(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """None."""
        return ()

    def expand(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """Guesses of a pass of the draft."""
        return self._guesses(tree, node, None)

    def ahead(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """The same with one thread: the target keeps the others."""
        return self._guesses(tree, node, self._run_alone)

    def kept(self, tree: TokenTree, path: Sequence[int]) -> None:
        """What the draft has evaluated of the path need not be evaluated again."""
        self._settle(self._rows.rows(path) if self._rows.tree in (None, tree) else ())

    def carried(self, tree: TokenTree, path: Sequence[int], rest: TokenTree, origin: Sequence[int]) -> None:
        """What the draft has evaluated behind the path stays, too."""
        if self._rows.tree not in (None, tree) or not self._rows.carry(path, rest, origin):
            self.kept(tree, path)

    def close(self) -> None:
        """Gives the sequence to the ones that are kept for later texts, or back."""
        if self._seq is not None:
            seq, self._seq = self._seq, None
            if self._begin == 0:
                self._model.retire(seq, self._source[: self._end])
            else:
                self._model.decoder.release(seq)
        self._rows.forget()
        self._begin = self._end = 0

    def _guesses(self, tree: TokenTree, node: int, run: RunTree | None) -> Sequence[Guess]:
        assert self._seq is not None
        if self._rows.tree not in (None, tree):
            self._settle()
        if len(self._source) - 1 - self._begin + tree.depths[node] >= self._model.context_length:
            return ()
        return self._rows.guesses(self._seq, tree, node, self.kind or "", run)

    def _goes_on(self, tokens: list[int]) -> bool:
        """Whether the rows are those of the tree behind this text."""
        end = self._end + len(self._rows.trunk)
        return bool(self._rows.trunk) and tokens is self._source and end == len(tokens) - 1 and not self._is_full()

    def _settle(self, rows: Sequence[int] = ()) -> None:
        """The sequence takes over the rows of the trunk, and the ones behind it; all others are dropped."""
        rows = [*self._rows.trunk, *rows]
        self._rows.forget()
        if rows and self._seq is not None:
            self._model.decoder.keep(self._seq, rows)
            self._end += len(rows)

    def _is_full(self) -> bool:
        return len(self._source) - self._begin >= self._model.context_length - DECODE_ROWS

    def _must_restart(self, left: int) -> bool:
        return (left > FAR or self._is_full()) and len(self._source) - 1 - self._begin > self._window

    def _evaluate(self, end: int, phase: str = "") -> None:
        """Tokens of the text up to `end`; few ones are taken for generated ones, without a phase."""
        if self._seq is None:
            self._seq, shared = self._model.create(self._source[:end] if self._begin == 0 else [])
            self._end = self._begin + shared
        decoder = self._model.decoder
        self._end = self._begin + decoder.length(self._seq)  # a pass may have been interrupted behind its end
        while self._end < end:
            tokens = self._source[self._end : min(self._end + self._model.chunk, end)]
            few = "decode" if len(tokens) <= DECODE_ROWS else "prompt"
            self._model.forward(self._seq, tokens, phase or few)
            self._end = self._begin + decoder.length(self._seq)

    def _cut(self, end: int) -> None:
        """Cuts the sequence back, or releases it where it cannot be cut."""
        assert self._seq is not None
        length = end - self._begin
        if length > 0 and self._model.decoder.truncate(self._seq, length):
            self._end = end
        else:
            self._model.decoder.release(self._seq)
            self._seq, self._begin, self._end = None, 0, 0


class ModelDraft:
    """Drafts with another model.

    Args:
        decoder: of the draft, used by nobody else.
        name: as `draft=` has it.
        context_length: positions that the draft was made for.
        kept_positions: tokens of ended texts that stay in its cache, for later ones that begin alike.
        num_threads: of its passes; 0: those of the process.
        chunk: rows of a pass of the prompt.
    """

    separate = True

    def __init__(
        self,
        decoder: Decoder,
        name: str,
        *,
        context_length: int,
        kept_positions: int = 4096,
        num_threads: int = 0,
        chunk: int = CHUNK,
    ) -> None:
        self.decoder, self.name, self.context_length = decoder, name, context_length
        self.num_threads, self.chunk = num_threads, chunk
        self._prefixes, self._kept_positions = Prefixes(decoder, kept_positions), kept_positions

    def open(self, seq: int) -> ModelText:
        """For a new text."""
        return ModelText(self, self.name)

    def clear(self) -> None:
        """Releases what is kept for later texts."""
        self._prefixes.clear()

    def create(self, tokens: list[int]) -> tuple[int, int]:
        """A sequence, and how many of the tokens it begins with."""
        wanted = np.array(tokens, np.int32)
        prefix, shared = self._prefixes.find(wanted, None)
        if prefix is not None and shared >= WORTH_SHARING:
            try:
                seq = self.decoder.fork(prefix.seq, shared)
            except ValueError:  # a window has dropped what the shorter sequence needs
                return self.decoder.create(), 0
            self._prefixes.use(prefix)
            return seq, shared
        return self.decoder.create(), 0

    def forward(self, seq: int, tokens: list[int], phase: str) -> None:
        """Appends tokens. Kept texts make room where the cache is full."""
        rows, none = np.array(tokens, np.int32), np.empty(0, np.int32)
        while True:
            try:
                with allowed_interrupts():
                    self.decoder.forward([seq], [rows], phase, [none], num_threads=self.num_threads)
                return
            except RuntimeError as error:
                if not is_cache_full(error) or not self._prefixes.drop_oldest():
                    raise

    def retire(self, seq: int, tokens: list[int]) -> None:
        """Keeps a text for later ones, or releases it."""
        if self._kept_positions and len(tokens) >= WORTH_SHARING and self.decoder.length(seq) == len(tokens):
            self._prefixes.keep(Prefix(seq, np.array(tokens, np.int32), None))
        else:
            self.decoder.release(seq)
