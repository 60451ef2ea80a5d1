"""Answers that take a while: they end when they are complete, when time is up, or when the client has left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tmac.serve.errors import ApiError, internal, timed_out, unavailable
from tmac.serve.service import Service
from tmac.serve.texts import log_failure

logger = logging.getLogger("tmac.serve")
LAST_WORDS_SECONDS = 1.0  # to tell a client that does not read why its stream ends


def to_json(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")


class Sender:
    """Sends an answer: either one object, or a stream of events."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.streaming = self.complete = False

    async def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        """One object, and that is all."""
        body = to_json(value)
        written = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        await self._start(status, written)
        await self._body(body, last=True)

    async def start_events(self) -> None:
        """The beginning of a stream."""
        self.streaming = True
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await self._start(200, {**headers, "x-accel-buffering": "no"})

    async def event(self, value: Any) -> None:
        """One event of a stream."""
        await self._body(b"data: " + to_json(value) + b"\n\n")

    async def ping(self) -> None:
        """A comment, which clients skip."""
        await self._body(b": still here\n\n")

    async def end_events(self, *, done: bool = True) -> None:
        """The end of a stream."""
        await self._body(b"data: [DONE]\n\n" if done else b"", last=True)

    async def fail(self, error: ApiError) -> None:
        """An error instead of the answer, or at the end of what there is of it."""
        if not self.streaming:
            await self.answer(error.status, error.body(), error.headers)
        elif not self.complete:
            await self.event(error.body())
            await self.end_events(done=False)

    async def _start(self, status: int, headers: dict[str, str]) -> None:
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def _body(self, body: bytes, *, last: bool = False) -> None:
        self.complete = last
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})


class Reply(Response):
    """Runs `work(sender)`, which sends the answer.

    Args:
        service: limits and counters.
        work: sends the answer; what it raises is sent as an error.
        arrived: `time.monotonic()` of the request.
    """

    def __init__(self, service: Service, work: Callable[[Sender], Awaitable[None]], arrived: float) -> None:
        super().__init__()
        self._service, self._work, self._arrived = service, work, arrived

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers, as ASGI wants it."""
        sender, task = Sender(send), asyncio.current_task()
        assert task is not None
        self._service.replies.add(task)
        task.add_done_callback(self._service.replies.discard)
        work = asyncio.ensure_future(self._work(sender))
        gone = asyncio.ensure_future(_until_gone(receive))
        seconds = self._service.settings.request_timeout
        try:
            left = max(0.0, self._arrived + seconds - time.monotonic())
            await asyncio.wait({work, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not work.done():
                self._service.metrics.left += 1
                return
            error = await _outcome(work, timed_out(seconds))
        except asyncio.CancelledError:  # the server does not wait for it any longer
            error = unavailable("the server is about to stop")
        finally:
            await _cancel(work, gone)
        if error is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(sender.fail(error), LAST_WORDS_SECONDS)


async def _outcome(work: asyncio.Future[None], late: ApiError) -> ApiError | None:
    """What went wrong."""
    if not work.done():
        return late
    error = work.exception()
    if error is None or isinstance(error, ApiError):
        return error
    log_failure(error)
    return internal()


async def _cancel(*tasks: asyncio.Future[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
