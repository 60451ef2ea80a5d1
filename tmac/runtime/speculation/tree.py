"""The guesses behind a text, as a tree of tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tmac.runtime.native import Ids


class TokenTree:
    """Tokens that may follow a text. Node 0 is the text's last token, which the target has not evaluated yet.

    A parent's number is lower than its children's, and its chance is at least theirs.

    Args:
        root: the last token.
    """

    def __init__(self, root: int) -> None:
        self.tokens = [root]
        self.parents = [-1]
        self.depths = [0]
        self.kinds = [""]  # of the draft that guessed it
        self.confidences = [1.0]  # what that draft says of the step from its parent
        self.chances = [1.0]  # that the target agrees with the path from the root
        self._children: list[list[int]] = [[]]

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int, kind: str, confidence: float, step: float) -> int:
        """A new node, or the one that the parent has already for this token.

        Args:
            parent: a node.
            token: after it.
            kind: of the draft.
            confidence: as the draft gives it.
            step: how likely the target agrees, if it agrees with the parent, in [0, 1].
        """
        known = self.child(parent, token)
        if known is not None:
            return known
        node = len(self.tokens)
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.kinds.append(kind)
        self.confidences.append(confidence)
        self.chances.append(self.chances[parent] * step)
        self._children.append([])
        self._children[parent].append(node)
        return node

    def children(self, node: int) -> list[int]:
        """In the order in which they came."""
        return self._children[node]

    def child(self, node: int, token: int) -> int | None:
        """The child with this token."""
        return next((child for child in self._children[node] if self.tokens[child] == token), None)

    def path(self, node: int) -> list[int]:
        """From the root to the node, both included."""
        found = [node]
        while self.parents[found[-1]] >= 0:
            found.append(self.parents[found[-1]])
        return found[::-1]

    def subtree(self, root: int, step: Callable[[str, float], float]) -> tuple[TokenTree, list[int]]:
        """A node and all behind it as a tree of its own, and which node of this one each of its nodes is.

        Args:
            root: its root.
            step: kind and confidence of a guess -> how likely the target agrees, if it agrees with the parent.
        """
        found, origin, place = TokenTree(self.tokens[root]), [root], {root: 0}
        for node in range(root + 1, len(self.tokens)):
            parent = place.get(self.parents[node])
            if parent is not None:
                kind, confidence = self.kinds[node], self.confidences[node]
                place[node] = found.add(parent, self.tokens[node], kind, confidence, step(kind, confidence))
                origin.append(node)
        return found, origin

    def best(self) -> list[int]:
        """All nodes but the root, the likeliest first, parents before their children: any beginning is a tree."""
        return sorted(range(1, len(self.tokens)), key=lambda node: (-self.chances[node], node))

    def pruned(self, nodes: list[int]) -> tuple[Ids, Ids, list[int]]:
        """Tokens and parents of the root and some nodes, as the decoder takes them, and which node each row is.

        Args:
            nodes: without the root, with each its parent.
        """
        kept = [0, *sorted(nodes)]
        place = {node: row for row, node in enumerate(kept)}
        tokens = np.array([self.tokens[node] for node in kept], np.int32)
        parents = np.array([place[self.parents[node]] if node else -1 for node in kept], np.int32)
        return tokens, parents, kept
