"""Servers for the tests. Without the packages that they need there are no tests, which CI does not accept."""

import importlib.util
import os

import pytest

MISSING = [name for name in ("starlette", "uvicorn", "openai", "httpx") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING and os.environ.get("CI", "").lower() not in ("1", "true") else []


def pytest_report_header():
    return f"tmac: no tests of the server without {', '.join(MISSING)}: install the extra test" if MISSING else None


@pytest.fixture
def serve():
    """`serve(engine, **settings)` starts a server that ends with the test."""
    from running import Running
    from served_engine import FakeEngine

    started = []

    def start(engine=None, **settings):
        started.append(Running(engine or FakeEngine(), **settings).__enter__())
        return started[-1]

    yield start
    for server in started:
        server.__exit__()


@pytest.fixture(scope="module")
def plain():
    """A server that several tests share; its engine answers at once."""
    from running import Running
    from served_engine import FakeEngine

    with Running(FakeEngine()) as server:
        yield server
