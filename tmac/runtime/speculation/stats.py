"""What speculation did for a text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class SpeculationStats:
    """Passes and guesses after the prompt. Filled while the text is written; complete with its last chunk, but
    for the time of its own choice and delivery.

    Args:
        draft: its name.
        passes: of the target.
        tokens: that they gave.
        draft_passes: of the draft, that the text waited for.
        drafted: guesses that were verified, by depth: the first are those right behind the text.
        accepted: of these, those that the target agreed with.
        budgets: for each pass, how many guesses were verified; 0 is plain decoding.
        draft_seconds: spent on guesses, and by the draft on the prompt, while the text waited.
        verify_seconds: in passes of the target with guesses.
        plain_seconds: in passes without, with the token's own choice and delivery.
        io_seconds: of these, waiting for weights that stream from a disk.
        bytes_read: from the disk, in these passes: not for the prompt, nor for passes with other texts.
        error: what the draft failed with; the text went on without it.
        ahead_passes: of the draft, while passes of the target ran.
        ahead_kept: of these, the ones behind a token that the target then gave: the next guesses began with them.
        ahead_seconds: that they took, hidden behind the target's.
    """

    draft: str
    passes: int = 0
    tokens: int = 0
    draft_passes: int = 0
    drafted: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    budgets: list[int] = field(default_factory=list)
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    plain_seconds: float = 0.0
    io_seconds: float = 0.0
    bytes_read: int = 0
    error: str | None = None
    ahead_passes: int = 0
    ahead_kept: int = 0
    ahead_seconds: float = 0.0

    @property
    def tokens_per_pass(self) -> float:
        """1 for plain decoding; 0 if there was no pass."""
        return self.tokens / self.passes if self.passes else 0.0

    def acceptance_by_depth(self) -> list[float]:
        """Share of the verified guesses that were right, by depth."""
        return [right / tried for right, tried in zip(self.accepted, self.drafted, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "tokens_per_pass": self.tokens_per_pass,
            "acceptance_by_depth": self.acceptance_by_depth(),
        }

    def verified(self, depths: list[int]) -> None:
        """A pass of the target looks at guesses of these depths."""
        self.passes += 1
        self.budgets.append(len(depths))
        for depth in depths:
            while len(self.drafted) < depth:
                self.drafted.append(0)
                self.accepted.append(0)
            self.drafted[depth - 1] += 1
