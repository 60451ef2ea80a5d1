"""Deterministic times for the tests of the tuner, and a cache of their own."""

from tmac import QuantSpec, _core, tuner
from tmac.tuning_cache import PairTimes

W4 = QuantSpec(bits=4, group_size=32)


def pairs(spec=W4):
    return _core.candidate_kernels(spec)


class FakeTimer:
    """Stands in for `tmac.tuner.measure`: `fastest` (by default the last candidate) takes a tenth of the others."""

    def __init__(self, fastest=None):
        self.fastest = fastest
        self.calls = []

    def __call__(self, spec, out_features, in_features, num_threads):
        self.calls.append((spec, out_features, in_features, num_threads))
        fastest = self.fastest or pairs(spec)[-1]
        return tuple(
            PairTimes(*pair, {tokens: tokens * (0.1 if pair == fastest else 1.0) for tokens in (1, 8, 128)})
            for pair in pairs(spec)
        )


def use_cache(monkeypatch, folder):
    """Tuning is on, with its files in `folder`, and nothing is known yet."""
    for name in tuner.PINS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMAC_TUNING", "on")
    monkeypatch.setenv("TMAC_CACHE_DIR", str(folder))
    monkeypatch.setattr(tuner, "_caches", {})
