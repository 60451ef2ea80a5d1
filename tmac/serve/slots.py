"""How many texts are generated at a time, and how many wait for it."""

from __future__ import annotations

import asyncio
from collections import deque

from tmac.serve.errors import invalid, queue_full


class Slots:
    """Places for texts: `max_running` of them in the engine, `max_waiting` in a queue, first come, first served.

    Used by one event loop.
    """

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running, self._max_waiting = max_running, max_waiting
        self._taken = 0
        self.running = 0
        self.queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Texts that have a place and do not run."""
        return self._taken - self.running

    def reserve(self, count: int) -> list[Place]:
        """Places for the texts of one request: all of them or none.

        Raises:
            ApiError: there are not so many, now (429) or ever (400).
        """
        most = self._max_running + self._max_waiting
        if count > most:
            raise invalid(None, f"the request asks for {count} texts, and this server takes {most} at most")
        if self._taken + count > most:
            raise queue_full(self.waiting)
        self._taken += count
        return [Place(self) for _ in range(count)]

    async def enter(self) -> None:
        """Waits for the turn."""
        if self.running < self._max_running and not self.queue:
            self.running += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had come
                self.running -= 1
                self._wake()
            elif turn in self.queue:
                self.queue.remove(turn)
            raise

    def give_back(self, entered: bool) -> None:
        """Somebody has left."""
        self._taken -= 1
        if entered:
            self.running -= 1
            self._wake()

    def _wake(self) -> None:
        while self.queue and self.running < self._max_running:
            turn = self.queue.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)


class Place:
    """One text's place."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.entered = self._left = False

    async def enter(self) -> None:
        """Waits for the turn."""
        await self._slots.enter()
        self.entered = True

    def leave(self) -> None:
        """Gives the place back. Twice is once."""
        if not self._left:
            self._left = True
            self._slots.give_back(self.entered)
