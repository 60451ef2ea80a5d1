"""Runs the application until a signal ends it."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import uvicorn

from tmac.serve.app import create_app
from tmac.serve.service import ServedEngine
from tmac.serve.settings import Settings

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
BACKLOG = 256


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address is not this machine's, or somebody else has it.
    """
    with ExitStack() as undo:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise OSError(f"[serve] cannot listen on {host}, port {port}: {error.strerror or error}") from error
        undo.pop_all()
    return listener


def run_server(
    engine: ServedEngine,
    settings: Settings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    shutdown_timeout: int = 10,
    access_log: bool = True,
    announce: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGINT or SIGTERM; requests that run then have a while to end.

    On a loopback address without a key, requests must name this machine as their host: web pages that get their own
    name to point here (DNS rebinding) are refused.

    Args:
        engine: generates the texts; closed by the caller.
        settings: names and limits.
        host: address or name to listen on.
        port: 0: any that is free.
        shutdown_timeout: seconds for running requests once a signal has come; those left over are cancelled.
        access_log: whether a line for each request is logged, with address, path and status.
        announce: called with the URL when the server listens.

    Raises:
        OSError: the address cannot be used.
    """
    listener = bind(host, port)
    if settings.hosts is None and settings.api_key is None and is_loopback(host):
        settings = replace(settings, hosts=(*LOCAL_NAMES, host.lower()))
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        create_app(engine, settings),
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=_log_config("INFO" if access_log else "WARNING"),
        access_log=access_log,
        server_header=False,
        timeout_graceful_shutdown=shutdown_timeout,
    )
    server = uvicorn.Server(config)
    with listener, _told_to_end(server):
        asyncio.run(_serve(server, listener, lambda: announce(url)))


@contextmanager
def _told_to_end(server: uvicorn.Server) -> Iterator[None]:
    """SIGINT and SIGTERM end the server and nothing else: uvicorn sends them again, to the handlers that were there."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        server.should_exit = True

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _log_config(access_level: str) -> dict[str, Any]:
    """Everything to standard error; of requests address, path and status."""
    loggers = {"uvicorn": "WARNING", "uvicorn.access": access_level, "tmac.serve": "INFO"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "plain"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level, "propagate": False} for name, level in loggers.items()
        },
    }


async def _serve(server: uvicorn.Server, listener: socket.socket, announce: Callable[[], None]) -> None:
    async def tell() -> None:
        while not server.started and not server.should_exit:
            await asyncio.sleep(0.01)
        announce()

    telling = asyncio.ensure_future(tell())
    try:
        await server.serve(sockets=[listener])
    finally:
        telling.cancel()
