"""The texts of one request: from the engine's threads into the event loop, and a way to stop them."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import traceback
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from tmac.serve.errors import ApiError, internal, invalid, queue_full, unavailable
from tmac.serve.service import EngineRequest, Service
from tmac.serve.slots import Place

logger = logging.getLogger("tmac.serve")
STARTED, ENDED = "started", "ended"


@dataclass(frozen=True)
class Job:
    """A text to generate.

    Args:
        prompt: its token ids.
        options: of `Engine.submit`.
    """

    prompt: list[int]
    options: dict[str, Any]


class Texts:
    """Generates texts until the block ends; what has not ended then is cancelled.

        async with Texts(service, jobs) as texts:
            async for index, chunk in texts:

    Raises:
        ApiError: there is no place for them; inside the block, what went wrong with one of them.
    """

    def __init__(self, service: Service, jobs: Sequence[Job]) -> None:
        self._service, self._jobs = service, jobs
        self._queue: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
        self._runs: list[_Run] = []
        self._open = len(jobs)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Texts:
        places = self._service.slots.reserve(len(self._jobs))
        for index, (job, place) in enumerate(zip(self._jobs, places, strict=True)):
            self._runs.append(_Run(self._service, job, place, index, self._queue))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for run in self._runs:
            run.stop()

    async def started(self) -> None:
        """Waits until the engine has taken one of them."""
        _, item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item

    async def __aiter__(self) -> AsyncIterator[tuple[int, Any]]:
        """(which, chunk) in the order in which they come; and (-1, None) every `ping_seconds`."""
        self._set_timer()
        while self._open:
            index, item = await self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is ENDED:
                self._open -= 1
            elif item is not STARTED:
                yield index, item

    def _set_timer(self) -> None:
        """Every so often there is something in the queue, if only to say that there is nothing."""
        if self._timer is not None:
            self._queue.put_nowait((-1, None))
        self._timer = self._loop.call_later(self._service.settings.ping_seconds, self._set_timer)


class _Run:
    """One text: waits for its turn, then a thread takes its chunks from the engine."""

    def __init__(
        self, service: Service, job: Job, place: Place, index: int, queue: asyncio.Queue[tuple[int, Any]]
    ) -> None:
        self._service, self._job, self._place, self._index, self._queue = service, job, place, index, queue
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._request: EngineRequest | None = None
        self._stopped = False
        self._task = self._loop.create_task(self._run())
        service.runs.add(self._task)
        self._task.add_done_callback(self._over)

    def stop(self) -> None:
        """Cancels it, wherever it is; harmless when it has ended."""
        with self._lock:
            self._stopped, request = True, self._request
        if not self._place.entered:
            self._task.cancel()
        elif request is not None:
            request.cancel()

    async def _run(self) -> None:
        await self._place.enter()
        await self._loop.run_in_executor(self._service.generating, self._generate)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._service.runs.discard(task)
        self._place.leave()
        if not task.cancelled() and task.exception() is not None:  # no thread took it: they have been told to end
            self._queue.put_nowait((self._index, unavailable("the server is about to stop")))

    # In a thread of its own.

    def _generate(self) -> None:
        try:
            self._post(STARTED if self._submit() else ENDED)
            if self._request is None:
                return
        except Exception as error:  # noqa: BLE001 - the client learns of it
            self._post(_refusal(error))
            return
        try:
            for chunk in self._request:
                self._post(chunk)
                if chunk.finish_reason is not None:
                    break
            self._post(ENDED)
        except Exception as error:  # noqa: BLE001 - the client learns of it
            self._post(_failure(error))
        finally:
            with self._lock:
                self._request = None

    def _submit(self) -> bool:
        with self._lock:
            if self._stopped:
                return False
        request = self._service.engine.submit(self._job.prompt, **self._job.options)
        with self._lock:
            self._request, stopped = request, self._stopped
        if stopped:
            request.cancel()
        return True

    def _post(self, item: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._arrive, item)
        except RuntimeError:  # the loop has been closed: the server is gone
            with self._lock:
                self._stopped, request = True, self._request
            if request is not None:
                request.cancel()

    # Back in the event loop.

    def _arrive(self, item: Any) -> None:
        metrics = self._service.metrics
        if item is STARTED:
            metrics.prompt_tokens += len(self._job.prompt)
        elif isinstance(item, BaseException):
            metrics.texts["error"] += 1
        elif item is not ENDED:
            metrics.generated_tokens += len(item.token_ids)
            if item.finish_reason is not None:
                metrics.texts[item.finish_reason] += 1
            if item.speculation is not None:
                metrics.drafted_tokens += sum(item.speculation.drafted)
                metrics.accepted_tokens += sum(item.speculation.accepted)
        self._queue.put_nowait((self._index, item))


async def score(service: Service, ids: list[int], top: int) -> Sequence[Any]:
    """The `TokenLogprob`s of a prompt but for its first token; takes a text's place.

    Raises:
        ApiError: there is no place for it.
    """
    (place,) = service.slots.reserve(1)
    cancelled = threading.Event()

    async def run() -> Sequence[Any]:
        await place.enter()
        work = functools.partial(service.engine.token_logprobs, ids, top, cancelled.is_set)
        return await asyncio.get_running_loop().run_in_executor(service.generating, work)

    def over(done: asyncio.Task[Sequence[Any]]) -> None:
        service.runs.discard(done)
        place.leave()
        if not done.cancelled():
            done.exception()  # has been seen

    task = asyncio.ensure_future(run())
    service.runs.add(task)
    task.add_done_callback(over)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled.set()
        if not place.entered:
            task.cancel()
        raise


def _refusal(error: Exception) -> ApiError:
    """What the engine says when it does not take a request: its messages begin with the argument's name."""
    if type(error).__name__ == "QueueFullError":
        return queue_full(0)
    if isinstance(error, (ValueError, TypeError, ImportError)):
        param = str(error).partition(":")[0]
        return invalid(None, str(error)) if not param.isidentifier() else _about(param, str(error))
    return _failure(error)


def _about(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="invalid_value")


def _failure(error: Exception) -> ApiError:
    """What keeps the engine from ending a text."""
    message = str(error)
    if isinstance(error, ValueError) and message.startswith("prompt:"):
        return ApiError(400, message, code="context_length_exceeded")
    if isinstance(error, RuntimeError) and "closed" in message:
        return unavailable("the server is about to stop")
    log_failure(error)
    return internal()


def log_failure(error: BaseException) -> None:
    """Where it happened and what it was, but not its message, which may hold what a client wrote."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s\n%s", type(error).__name__, where)
