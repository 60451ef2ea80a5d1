"""The ASGI application: its routes and what stands before them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tmac.serve.chat import ChatCompletion
from tmac.serve.chat_request import read_chat
from tmac.serve.completion_request import read_completion
from tmac.serve.completions import Completion
from tmac.serve.errors import ApiError
from tmac.serve.guard import Guard, error_response
from tmac.serve.json_body import read_json
from tmac.serve.replies import Reply, to_json
from tmac.serve.service import ServedEngine, Service
from tmac.serve.settings import Settings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_app(engine: ServedEngine, settings: Settings) -> Starlette:
    """The server's application, for any ASGI server of one process.

    Args:
        engine: generates the texts; it stays the caller's, who closes it.
        settings: names and limits.
    """
    service = Service(engine, settings)
    endpoints = _Endpoints(service)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await service.close()

    middleware = [Middleware(Guard, service=service)]
    if settings.cors_origins:
        options: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.insert(0, Middleware(CORSMiddleware, allow_origins=list(settings.cors_origins), **options))
    app = Starlette(
        routes=[
            Route("/v1/models", endpoints.models),
            Route("/v1/models/{model:path}", endpoints.model),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/health", endpoints.health),
            Route("/metrics", endpoints.metrics),
        ],
        middleware=middleware,
        exception_handlers={ApiError: _api_error, HTTPException: _http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


class _Endpoints:
    """One method for each route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        self._service.check_model(request.path_params["model"])
        return _json(self._model())

    async def completions(self, request: Request) -> Response:
        service = self._service
        body = await read_json(request, service.settings)
        asked = read_completion(body, service.settings, service.engine.vocab_size)
        service.check_model(asked.model)
        return Reply(service, Completion(service, asked).send, request.scope["tmac.arrived"])

    async def chat(self, request: Request) -> Response:
        service = self._service
        body = await read_json(request, service.settings)
        asked = read_chat(body, service.settings, service.engine.vocab_size)
        service.check_model(asked.model)
        return Reply(service, ChatCompletion(service, asked).send, request.scope["tmac.arrived"])

    async def health(self, _: Request) -> Response:
        return _json({"status": "ok"})

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(self._service.metrics.render(), headers={"content-type": METRICS_TYPE})

    def _model(self) -> dict[str, Any]:
        service = self._service
        return {
            "id": service.settings.model_name,
            "object": "model",
            "created": service.created,
            "owned_by": "tmac",
            "context_length": service.engine.context_length,
        }


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What starlette refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path[:200]}: {error.detail}"
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(ApiError(error.status_code, message, code=code, headers=error.headers))
