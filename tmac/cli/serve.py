"""`tmac serve`: answers programs that speak OpenAI's API, over HTTP."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from tmac.cli.arguments import positive
from tmac.cli.engine_options import add_loading_options, load_engine
from tmac.cli.errors import CommandError

if TYPE_CHECKING:
    from tmac.serve import Settings

KEY_VARIABLE = "TMAC_API_KEY"
PORTS = 65535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `tmac serve`."""
    add_loading_options(parser)
    parser.add_argument(
        "--cache-positions",
        type=positive,
        metavar="N",
        help="tokens of all texts (default: no limit; with --memory-limit the context, at most 4096)",
    )
    where = parser.add_argument_group("server")
    where.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    where.add_argument("--port", type=_port, default=8000, help="0: any that is free (default: %(default)s)")
    where.add_argument("--model-name", metavar="NAME", help="what clients ask for (default: the name of PATH)")
    where.add_argument("--api-key", metavar="KEY", help=f"what clients must show; better in {KEY_VARIABLE}")
    where.add_argument("--cors-origin", action="append", default=[], metavar="ORIGIN", help="web pages that may ask")
    where.add_argument("--no-access-log", action="store_true", help="no line for each request")
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-requests", type=positive, default=32, help="texts at a time (default: %(default)s)")
    limits.add_argument("--max-queued", type=positive, default=128, help="texts that wait (default: %(default)s)")
    limits.add_argument("--max-tokens", type=positive, help="most tokens of a text (default: the context)")
    limits.add_argument("--max-body", type=positive, default=4 << 20, help="bytes of a request (default: %(default)s)")
    limits.add_argument("--timeout", type=positive, default=600, help="seconds for an answer (default: %(default)s)")
    limits.add_argument(
        "--shutdown-timeout",
        type=positive,
        default=10,
        help="seconds that running answers get when the server is told to end (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C or SIGTERM."""
    try:
        from tmac.serve import is_loopback, run_server
    except ImportError as error:
        raise CommandError(f"{error}; pip install 'tmac-cpu[serve]'") from error
    settings = _settings(args)
    if not is_loopback(args.host) and settings.api_key is None:
        message = f"warning: {args.host} is open to other machines and there is no API key: set {KEY_VARIABLE}"
        print(message, file=sys.stderr, flush=True)
    engine = load_engine(args, max_batch=args.max_requests, max_positions=args.cache_positions)
    try:
        run_server(
            engine,
            settings,
            host=args.host,
            port=args.port,
            shutdown_timeout=args.shutdown_timeout,
            access_log=not args.no_access_log,
            announce=lambda url: print(f"{settings.model_name} at {url}/v1", file=sys.stderr, flush=True),
        )
    finally:
        engine.close()
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    from tmac.serve import Settings

    known = {item.name for item in fields(Settings)}
    given = {name: value for name, value in vars(args).items() if name in known}
    return Settings(
        **{
            **given,
            "model_name": args.model_name or Path(args.path).resolve().stem,
            "api_key": _key(args.api_key),
            "max_body_bytes": args.max_body,
            "request_timeout": float(args.timeout),
            "cors_origins": tuple(args.cors_origin),
        }
    )


def _key(option: str | None) -> str | None:
    """The key; one that is empty would be asked of nobody."""
    key = os.environ.get(KEY_VARIABLE) if option is None else option
    if key is not None and not key.strip():
        raise CommandError(f"{'--api-key' if option is not None else KEY_VARIABLE}: expected a key, found nothing")
    return None if key is None else key.strip()


def _port(text: str) -> int:
    if text.isdecimal() and int(text) <= PORTS:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected 0 to {PORTS}, found {text!r}")
