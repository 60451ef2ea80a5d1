"""Work in a few threads whose results are used in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from queue import SimpleQueue
from threading import Condition, Thread
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    items: Sequence[Item], prepare: Callable[[Item], Result], use: Callable[[Result], None], num_threads: int = 2
) -> Generator[Item, None, None]:
    """Yields every item after `use(prepare(item))`.

    Threads prepare different items at the same time, each one at a time, so that there are never more results than
    threads. `use` is called by one thread at a time, in the order of the items. The first exception ends the others'
    work and is raised; so does closing the iterator, which waits for them: close it where the loop may be left early.
    """
    turns = _Turns(items, prepare, use)
    threads: list[Thread] = []
    try:
        for _ in range(min(num_threads, len(items))):
            threads.append(Thread(target=turns.run, daemon=True))
            threads[-1].start()
        for _ in items:
            done = turns.done.get()
            if isinstance(done, BaseException):
                raise done
            yield done[0]
    finally:
        turns.stop()
        for thread in threads:
            if thread.ident is not None:  # an interruption may come between the two lines above
                thread.join()


class _Turns(Generic[Item, Result]):
    def __init__(self, items: Sequence[Item], prepare: Callable[[Item], Result], use: Callable[[Result], None]) -> None:
        self.items, self.prepare, self.use = items, prepare, use
        self.done: SimpleQueue[tuple[Item] | BaseException] = SimpleQueue()
        self.condition = Condition()
        self.taken = self.used = 0
        self.stopped = False

    def run(self) -> None:
        try:
            while self._next():
                pass
        except BaseException as error:  # noqa: BLE001  the iterator raises it
            self.stop()
            self.done.put(error)

    def stop(self) -> None:
        with self.condition:
            self.stopped = True
            self.condition.notify_all()

    def _next(self) -> bool:
        """Prepares and uses one item; False where there is nothing left to do."""
        with self.condition:
            index = self.taken
            if self.stopped or index == len(self.items):
                return False
            self.taken += 1
        result = self.prepare(self.items[index])
        with self.condition:
            self.condition.wait_for(lambda: self.stopped or self.used == index)
            if self.stopped:
                return False
        self.use(result)
        with self.condition:
            self.used += 1
            self.condition.notify_all()
        self.done.put((self.items[index],))
        return True
