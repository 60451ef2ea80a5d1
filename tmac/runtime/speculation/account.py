"""What speculation may lose: a few per cent of plain decoding, whatever its estimates say."""

from __future__ import annotations

WARM_UP = 32  # tokens at the beginning of a text in which everything may be tried
START = 4.0  # what may be lost in them, in plain tokens' time
AFTER = 0.5  # of that, what may be left after them
ALLOWANCE = 0.015  # of each token's time
MOST = 12.0  # gains beyond this are not held against later losses


class Account:
    """Time that was gained over plain decoding, in units of a plain token's time; a loss is only risked if it is there.

    So a text takes at most `1 + ALLOWANCE` times the time of plain decoding, and `AFTER` tokens, after the warm-up:
    if the time of a plain token, which is measured all along, is right.
    """

    def __init__(self) -> None:
        self.balance = START
        self.tokens = 0

    def add(self, tokens: int, time: float) -> None:
        """So many tokens came in so much time, in units of a plain token's time."""
        warm = self.tokens < WARM_UP
        self.tokens += tokens
        self.balance = min(self.balance + tokens * (1.0 + ALLOWANCE) - time, MOST)
        if warm and self.tokens >= WARM_UP:
            self.balance = min(max(self.balance, 0.0), AFTER)
