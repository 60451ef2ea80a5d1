"""The side of a generation that waits for it, in any thread."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from tmac.runtime.generate import Chunk, Generation

WAIT_SECONDS = 0.1


class Driver(Protocol):
    """Who lets a request go on."""

    def advance(self) -> bool:
        """Runs passes, or says with False that another thread does."""

    def reap(self) -> None:
        """Lets go of what has been cancelled, if nobody is about to."""


class Outbox:
    """Where the chunks of one or several requests arrive."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.chunks: deque[Chunk] = deque()
        self.error: BaseException | None = None
        self.open = 0

    def pop(self) -> Chunk | None:
        """The next chunk, or None if there is none yet.

        Raises:
            StopIteration: all requests have ended.
            BaseException: what kept one of them from ending.
        """
        with self.condition:
            if self.chunks:
                return self.chunks.popleft()
            if self.error is not None:
                raise self.error
            if not self.open:
                raise StopIteration
            return None

    def next(self, driver: Driver) -> Chunk:
        """Waits for the next chunk. Raises as `pop` does."""
        while True:
            chunk = self.pop()
            if chunk is not None:
                return chunk
            if not driver.advance():
                self.wait(lambda: not self.chunks and self.error is None and self.open > 0)

    def wait(self, while_: Callable[[], bool]) -> None:
        """Until something has arrived, if that is so now; not for long, so that signals are seen on every system."""
        with self.condition:
            if while_():
                self.condition.wait(WAIT_SECONDS)


class Request:
    """A generation that runs: an iterator of its chunks. A request that nobody holds any more is cancelled.

    Args:
        driver: who lets it go on.
        prompt_tokens: in its prompt.
        outbox: of the batch.
        on_chunk: called with each chunk in the thread that runs the passes; what it raises ends the request.
        owner: what must live as long as the request.
    """

    def __init__(
        self,
        driver: Driver,
        prompt_tokens: int,
        outbox: Outbox | None = None,
        on_chunk: Callable[[Chunk], None] | None = None,
        owner: object = None,
    ) -> None:
        self.prompt_tokens, self.cancelled = prompt_tokens, False
        self._driver, self._outbox, self._on_chunk = driver, outbox or Outbox(), on_chunk
        self._owner = owner
        self._all: list[Chunk] = []
        self._error: BaseException | None = None
        self._outbox.open += 1

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._error is not None or bool(self._all and self._all[-1].finish_reason)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return self._outbox.next(self._driver)

    def result(self) -> Generation:
        """Waits for the end: the whole generation, whether or not its chunks have been taken.

        Raises:
            Exception: what kept it from ending, NaN logits for instance.
        """
        while not self.done:
            if not self._driver.advance():
                self._outbox.wait(lambda: not self.done)
        if self._error is not None:
            raise self._error
        return Generation.of(self._all, self.prompt_tokens)

    def cancel(self) -> None:
        """Ends it soon, with `finish_reason` "cancelled". From any thread; harmless when it has ended."""
        self.cancelled = True
        self._driver.reap()

    def deliver(self, chunk: Chunk) -> None:
        """The next chunk is there. Called by who runs the passes."""
        with self._outbox.condition:
            self._all.append(chunk)
            self._outbox.chunks.append(chunk)
            self._outbox.open -= chunk.finish_reason is not None
            self._outbox.condition.notify_all()
        if self._on_chunk is not None:
            self._on_chunk(chunk)

    def fail(self, error: BaseException) -> None:
        """It ends with an error."""
        with self._outbox.condition:
            if self.done:
                return
            self._error = self._outbox.error = error
            self._outbox.open -= 1
            self._outbox.condition.notify_all()


def weak_callbacks(request: Request) -> dict[str, Any]:
    """A task's way to its request, which does not keep the request alive."""
    find = weakref.ref(request)

    def deliver(chunk: Chunk) -> None:
        if (found := find()) is not None:
            found.deliver(chunk)

    def fail(error: BaseException) -> None:
        if (found := find()) is not None:
            found.fail(error)

    def abandoned() -> bool:
        return (found := find()) is None or found.cancelled

    return {"deliver": deliver, "fail": fail, "abandoned": abandoned}


class Stream:
    """The chunks of one or several requests as they come; `index` says whose they are. Closing it cancels the rest."""

    def __init__(self, driver: Driver, requests: Sequence[Request], outbox: Outbox) -> None:
        self._driver, self._requests, self._outbox = driver, requests, outbox

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        try:
            return self._outbox.next(self._driver)
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Cancels what has not ended."""
        for request in self._requests:
            if not request.done:
                request.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
