"""The target's own top planes as its draft: no second checkpoint, no second tokenizer, the same KV cache.

The draft's passes read the target's keys and values, and write rows of their own behind them, which the target's pass
overwrites. Any-Precision LLM (arXiv 2402.10517) and SPEQ (arXiv 2510.18525) draft with a prefix of the bits as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from tmac.runtime.speculation.drafts import Guess, NoPasses
from tmac.runtime.speculation.rows import RunTree, TreeRows
from tmac.runtime.speculation.tree import TokenTree


class PlanesText(NoPasses):
    """One text.

    Args:
        run: `forward_tree` of the target's decoder.
        seq: the text's sequence there, of which everything but the last token has been evaluated by the target.
        kind: "planes:4" for instance.
    """

    def __init__(self, run: RunTree, seq: int, kind: str) -> None:
        self.kind, self._seq = kind, seq
        self._rows = TreeRows(run, draft=True)

    def sync(self, tokens: list[int]) -> None:
        """The text so far."""
        self._rows.forget()

    def free(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """None."""
        return ()

    def expand(self, tree: TokenTree, node: int) -> Sequence[Guess]:
        """Guesses of a pass with the top planes."""
        return self._rows.guesses(self._seq, tree, node, self.kind or "")


class PlanesDraft:
    """Drafts with the top planes of the target.

    Args:
        run: `forward_tree` of its decoder, whose model has a draft of so many planes.
        planes: how many.
    """

    separate = False

    def __init__(self, run: RunTree, planes: int) -> None:
        self.name, self._run = f"planes:{planes}", run

    def open(self, seq: int) -> PlanesText:
        """For a new text."""
        return PlanesText(self._run, seq, self.name)

    def clear(self) -> None:
        """Nothing is kept."""
