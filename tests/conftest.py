"""What every test shares: where fixtures and tools are, what may be skipped, and what was not run."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# `python -m pytest` puts the checkout first, whose tmac has no compiled core unless it was installed with -e.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

os.environ["TMAC_TUNING"] = "off"  # what this machine's user has tuned must not choose what is tested

# Ignored where a shell started the tests in the background; tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")

# TMAC_TEST_BUDGET multiplies the examples of every property test; `.ci/run --full tests` sets it.
BUDGET = float(os.environ.get("TMAC_TEST_BUDGET", "1"))
settings.register_profile(
    "tmac",
    max_examples=max(1, round(50 * BUDGET)),
    deadline=None,
    derandomize=IN_CI and BUDGET <= 1,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tmac")


def find_fixtures():
    """The folder of the large checkpoints, or None on a plain clone."""
    places = [os.environ.get("TMAC_FIXTURES"), ROOT.parent / "shared" / "fixtures"]
    return next((Path(place) for place in places if place and Path(place).is_dir()), None)


def unavailable(reason):
    """Skips, or fails in CI, where everything that a package can give must be there."""
    if IN_CI:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory):
    """Tests run in an empty folder: a child process started in the checkout would import its uncompiled tmac."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def repository():
    """The root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def test_budget():
    """How many times the usual number of samples to draw: 1 unless TMAC_TEST_BUDGET says otherwise."""
    return BUDGET


@pytest.fixture(scope="session")
def fixtures_dir():
    """The folder of the large checkpoints; a test that asks for it skips where there is none."""
    folder = find_fixtures()
    if folder is None:
        pytest.skip("no checkpoints: set TMAC_FIXTURES to their folder")
    return folder


@pytest.fixture(scope="session")
def require_tool():
    """`require_tool("nm", package="binutils")` is the tool's path; a missing one skips, and fails in CI."""

    def require(tool, package):
        path = shutil.which(tool)
        if path is None:
            unavailable(f"{tool} is missing: install the system package {package}")
        return path

    return require


@pytest.fixture(scope="session")
def require_features():
    """`require_features(row)` skips, in CI too, where this CPU lacks a feature that a row of tmac.kernels() needs."""

    def require(row):
        missing = missing_features(row)
        if missing:
            pytest.skip(f"{row['name']} needs {', '.join(missing)}")

    return require


def missing_features(row):
    import tmac

    present = tmac.cpu_features()
    return [name for name in row["features"] if not present.get(name)]


def pytest_report_header():
    folder = find_fixtures()
    if folder is None:
        return "tmac: no ../shared/fixtures and no TMAC_FIXTURES: tests that need large checkpoints are skipped"
    return f"tmac: checkpoints from {folder}"


def pytest_terminal_summary(terminalreporter):
    """Kernels of the registry that this run could not execute."""
    try:
        import tmac

        rows = [row for row in tmac.kernels() if not row["runnable"]]
    except ImportError:
        return
    terminalreporter.section("kernels not run")
    for row in rows:
        terminalreporter.line(f"{row['name']}: needs {', '.join(missing_features(row)) or 'another CPU'}")
    if not rows:
        terminalreporter.line("none: this CPU ran every kernel of the registry")


@pytest.fixture(scope="session")
def smollm2():
    """The demo's real model, fetched as the demo fetches it. Offline and not in the cache: skips, and fails in CI."""
    from tmac.cli.demo_model import demo_model
    from tmac.cli.errors import CommandError

    try:
        return demo_model()
    except CommandError as error:
        if IN_CI:
            pytest.fail(str(error))
        pytest.skip(str(error))
