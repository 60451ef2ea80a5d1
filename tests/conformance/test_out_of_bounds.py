"""No kernel reads or writes past the activations, the packed weight, the bias or the result."""

from __future__ import annotations

import signal
import sys

import pytest

from .cases import run_child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="guard pages are made with mprotect")


@pytest.mark.parametrize("at_end", [True, False])
def test_the_guards_catch_one_byte(at_end: bool) -> None:
    child = run_child(f"from {__package__}.guard_pages import read_past; read_past({at_end})")
    assert child.returncode in (-signal.SIGSEGV, -signal.SIGBUS)


def test_kernels_stay_inside_their_arrays() -> None:
    child = run_child(f"from {__package__}.guard_pages import main; main()")
    ran = child.stdout.splitlines()
    assert child.returncode == 0, f"exit {child.returncode} after {ran[-1:]}: {child.stderr[-2000:]}"
    assert ran[-1] == "done"
    assert len(ran) > 1000
