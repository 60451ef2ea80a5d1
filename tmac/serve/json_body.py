"""The body of a request: read up to a limit, in time, as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from tmac.serve.errors import ApiError, invalid
from tmac.serve.settings import Settings

DRAINED_BODIES = 4  # limits of a body that are read and thrown away, so that its sender comes to see the answer


async def read_json(request: Request, settings: Settings) -> Any:
    """The body as JSON.

    Raises:
        ApiError: it is no JSON, too large or too slow.
    """
    _check_headers(request)
    try:
        body = await asyncio.wait_for(_read(request, settings.max_body_bytes), settings.body_timeout)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {settings.body_timeout:g} seconds"
        raise ApiError(408, message, code="timeout", headers={"Connection": "close"}) from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before the body was complete", code="disconnected") from None
    return parse_json(body)


def parse_json(body: bytes) -> Any:
    """JSON without the constants that only JavaScript knows.

    Raises:
        ApiError: it is none.
    """
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise invalid(None, f"the body is not UTF-8 at byte {error.start}", "invalid_json") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise invalid(None, f"the body is not JSON: {error.msg} ({where})", "invalid_json") from None
    except RecursionError:
        raise invalid(None, "the body is nested too deeply", "invalid_json") from None
    except ValueError as error:  # a constant, or a number with thousands of digits
        raise invalid(None, f"the body is not JSON: {error}", "invalid_json") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_headers(request: Request) -> None:
    """JSON must be announced: a form of a foreign web page cannot, and so cannot ask without CORS."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"Content-Type: expected application/json, found {kind[:80]!r}"
        raise ApiError(415, message, code="unsupported_media_type")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        message = f"Content-Encoding: expected none, found {encoding[:80]!r}"
        raise ApiError(415, message, code="unsupported_media_type")


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    too_large = announced.isdecimal() and int(announced[:20]) > limit
    if too_large and request.headers.get("expect", "").lower() == "100-continue":
        raise _too_large(limit)  # nothing of it has been sent
    parts, size = list[bytes](), 0
    async for part in request.stream():
        size += len(part)
        if size > limit or too_large:
            too_large = True
            parts.clear()
            if size > DRAINED_BODIES * limit:
                break
        else:
            parts.append(part)
    if too_large:
        raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit} bytes"
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
