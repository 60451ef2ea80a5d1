"""Failures as OpenAI's clients know them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

INVALID = "invalid_request_error"
SERVER = "server_error"
NO_RETRY = {"x-should-retry": "false"}  # what the client library asks before it tries again by itself


class ApiError(Exception):
    """An answer that says what went wrong.

    Args:
        status: of HTTP.
        message: for whoever wrote the request.
        param: the field that it is about.
        code: for programs.
        kind: OpenAI's `type`.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.kind = status, message, param, code, kind
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """What the answer holds."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str | None = "invalid_value") -> ApiError:
    """A field that is wrong; the message begins with its name."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A field of OpenAI's that means nothing here."""
    return invalid(param, message, "unsupported_parameter")


def too_long(param: str, tokens: int, context: int) -> ApiError:
    """A prompt that leaves no room for an answer."""
    message = f"{param}: the prompt has {tokens} tokens, and the model's context holds {context} with the answer"
    return ApiError(400, message, param=param, code="context_length_exceeded")


def queue_full(waiting: int) -> ApiError:
    """Too many requests at a time."""
    message = f"the queue is full: {waiting} texts wait; try again later"
    return ApiError(429, message, code="queue_full", kind="rate_limit_error", headers={"Retry-After": "1"})


def timed_out(seconds: float) -> ApiError:
    """The answer was not complete in time."""
    message = f"the answer took longer than {seconds:g} seconds"
    return ApiError(504, message, code="timeout", kind=SERVER, headers=NO_RETRY)


def unavailable(message: str) -> ApiError:
    """The server is about to stop."""
    return ApiError(503, message, code="unavailable", kind=SERVER)


def internal() -> ApiError:
    """Something that nobody expected; the log says what."""
    return ApiError(500, "an error inside the server; its log says more", code="internal_error", kind=SERVER)
