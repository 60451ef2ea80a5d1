"""What the tests of tuned layers share."""

import pytest
from tuning import FakeTimer, use_cache

from tmac import tuner


@pytest.fixture
def timer(monkeypatch, tmp_path):
    """Tuning with a cache of its own, and a `FakeTimer` in place of the measurement."""
    use_cache(monkeypatch, tmp_path)
    fake = FakeTimer()
    monkeypatch.setattr(tuner, "measure", fake)
    return fake
