"""What stands before every endpoint: who may ask, and what becomes of errors that nobody foresaw."""

from __future__ import annotations

import hashlib
import hmac
import time

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tmac.serve.errors import ApiError, internal
from tmac.serve.replies import to_json
from tmac.serve.service import Service
from tmac.serve.texts import log_failure

OPEN_PATHS = ("/health",)
PATHS = ("/v1/completions", "/v1/chat/completions", "/health", "/metrics")


def error_response(error: ApiError) -> Response:
    """An error as the whole answer."""
    return Response(to_json(error.body()), error.status, error.headers, "application/json")


class Guard:
    """Checks the key and the host, counts answers and turns unforeseen errors into one of the API's.

    Args:
        app: what it stands before.
        service: settings and counters.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        key = service.settings.api_key
        self._digest = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, as ASGI wants it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["tmac.arrived"] = time.monotonic()
        status = 0

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._service.metrics.requests[_endpoint(scope["path"]), status] += 1
            await send(message)

        try:
            refused = self._refusal(scope)
            await (self._app if refused is None else error_response(refused))(scope, receive, counting)
        except Exception as error:  # noqa: BLE001 - whatever it is, the server goes on
            log_failure(error)
            if not status:
                await error_response(internal())(scope, receive, counting)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers, hosts = Headers(scope=scope), self._service.settings.hosts
        if hosts is not None and _host_name(headers.get("host", "")) not in hosts:
            message = "Host: this server answers on this machine only; give it an API key to let others in"
            return ApiError(403, message, code="host_not_allowed")
        if self._digest is None or scope["path"] in OPEN_PATHS:
            return None
        scheme, _, shown = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(_digest(shown.strip().encode("latin-1")), self._digest):
            return None
        message = "a wrong API key was shown" if shown else "an API key is needed: Authorization: Bearer KEY"
        challenge = {"WWW-Authenticate": "Bearer"}
        return ApiError(401, message, code="invalid_api_key", kind="authentication_error", headers=challenge)


def _endpoint(path: str) -> str:
    """The path as a label: of those that clients make up there may be many."""
    if path.startswith("/v1/models"):
        return "/v1/models"
    return path if path in PATHS else "other"


def _digest(key: bytes) -> bytes:
    """Of one length, so that comparing takes the same time for every key."""
    return hashlib.sha256(key).digest()


def _host_name(host: str) -> str:
    """Without the port; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
