"""An OpenAI-compatible server over an Engine (docs/serve.md)."""

from __future__ import annotations

from tmac.serve.app import create_app
from tmac.serve.server import is_loopback, run_server
from tmac.serve.settings import Settings

__all__ = ["Settings", "create_app", "is_loopback", "run_server"]
