"""How often the target agrees with a draft, by how sure the draft is."""

from __future__ import annotations

from bisect import bisect_right

EDGES = (0.05, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98)
FIRST_HIT = 0.85  # of the likeliest guess after a node, before it is measured: a new draft is given a try
ANY = -1  # the bin of the likeliest guess after a node, whatever its confidence


class Acceptance:
    """Frequencies that forget, by kind of draft and confidence.

    Args:
        base: what is taken for true before there are measurements; None: that the draft's confidence is right.
        memory: measurements that count.
        strength: measurements that the base is worth.
    """

    def __init__(self, base: Acceptance | None = None, *, memory: float = 200.0, strength: float = 4.0) -> None:
        self._base, self._strength = base, strength
        self._decay = 1.0 - 1.0 / memory
        self._counts: dict[tuple[str, int], tuple[float, float]] = {}  # hits, trials

    def of_text(self) -> Acceptance:
        """For one text, which may be another kind of text than those before it."""
        return Acceptance(self, memory=25.0, strength=8.0)

    def chance(self, kind: str, confidence: float) -> float:
        """That the target agrees with a guess, if it agrees with what comes before."""
        return self._estimate((kind, bisect_right(EDGES, confidence)), min(max(confidence, 0.02), 0.98))

    def hit(self, kind: str) -> float:
        """That the target agrees with the guess after a node that the draft is most confident of."""
        return self._estimate((kind, ANY), FIRST_HIT)

    def add(self, kind: str, confidence: float, right: bool) -> None:
        """The target came to the node before a guess, and agreed with the guess or did not."""
        self._count((kind, bisect_right(EDGES, confidence)), right)

    def add_hit(self, kind: str, right: bool) -> None:
        """The same for the guess after a node that the draft is most confident of."""
        self._count((kind, ANY), right)

    def _estimate(self, key: tuple[str, int], first: float) -> float:
        base = first if self._base is None else self._base._estimate(key, first)
        hits, trials = self._counts.get(key, (0.0, 0.0))
        return (hits + self._strength * base) / (trials + self._strength)

    def _count(self, key: tuple[str, int], right: bool) -> None:
        hits, trials = self._counts.get(key, (0.0, 0.0))
        self._counts[key] = (hits * self._decay + right, trials * self._decay + 1.0)
        if self._base is not None:
            self._base._count(key, right)
