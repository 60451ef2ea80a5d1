import time

import pytest
from fake_core import FakeBuilder, use_fakes

from tmac.runtime.energy import CostMeter
from tmac.runtime.speed import Case, ReadProbe, Result, Subject, cache_bytes, cases, measure

CONFIG = {
    "family": "llama",
    "vocab_size": 50,
    "num_kv_heads": 2,
    "head_dim": 8,
    "windows": [0, 4],
    "context_length": 100,
}


@pytest.fixture
def subject(monkeypatch):
    use_fakes(monkeypatch)
    return Subject(FakeBuilder(CONFIG).build(), CONFIG, "f16", chunk_size=16)


def passes(subject):
    return [each[1:] for each in subject.decoder.passes]


def test_the_tests_are_named_as_llama_bench_names_them():
    found = cases([128, 0], [32], [0, 4096])
    assert [test.name for test in found] == ["pp128", "tg32", "pp128 @ d4096", "tg32 @ d4096"]
    assert [test.tokens for test in found] == [128, 32, 128, 32]


def test_a_prompt_goes_in_chunks_and_asks_for_its_last_row(subject):
    assert subject.run(Case(40, 0), 2) > 0
    assert passes(subject) == [(16, "prompt", [], 2), (16, "prompt", [], 2), (8, "prompt", [7], 2)]


def test_generated_tokens_come_one_at_a_time(subject):
    subject.run(Case(0, 3), 1)
    assert passes(subject) == [(1, "decode", [0], 1)] * 3


def test_a_depth_is_evaluated_once(subject):
    for _ in range(3):
        subject.run(Case(0, 2, 20), 1)
    assert passes(subject) == [(16, "prompt", [], 0), (4, "prompt", [3], 0)] + [(1, "decode", [0], 1)] * 6
    assert list(subject.decoder.lengths.values()) == [20]  # the runs' sequences are released


def test_a_context_that_is_too_short_is_named(subject):
    with pytest.raises(ValueError, match=r"tg32 @ d70: the model's context is 100 positions"):
        subject.run(Case(0, 32, 70), 1)


@pytest.mark.parametrize(("cache_type", "row"), [("f32", 32), ("f16", 16), ("int8", 8 + 4)])
def test_bytes_of_the_cache(cache_type, row):
    """Two layers, two heads of 8, keys and values; the second layer has a window of 4."""
    assert cache_bytes(CONFIG, cache_type, 0) == 2 * 2 * row * (1 + 1)
    assert cache_bytes(CONFIG, cache_type, 9) == 2 * 2 * row * (10 + 4)


def test_bytes_per_token_are_the_mean_over_the_run(subject):
    cached = [cache_bytes(CONFIG, "f16", position) for position in (10, 11, 12)]
    assert subject.bytes_per_token(Case(0, 3, 10)) == 1000 + sum(cached) // 3


def test_the_profile_is_of_one_pass_and_adds_up(subject):
    profile = subject.profile(Case(0, 4), 1)
    assert profile["total"] == pytest.approx(0.1)
    assert profile["qkv"] == pytest.approx(0.01)
    assert profile["rest"] == pytest.approx(0.1 - 9 * 0.01)
    assert not subject.decoder.profiled


class FakeProbe:
    def __init__(self):
        self.calls = []

    def gb_per_second(self, threads):
        self.calls.append(threads)
        return 10.0 * threads


def test_runs_alternate_and_the_memory_is_read_around_each(subject):
    probe = FakeProbe()
    results = measure([subject], [(test, count) for count in (1, 2) for test in (Case(4, 0), Case(0, 3))], 3, probe)
    assert [(result.test.name, result.threads) for result in results] == [
        ("pp4", 1),
        ("tg3", 1),
        ("pp4", 2),
        ("tg3", 2),
    ]
    one_round = [
        (4, "prompt", [3], 1),
        *[(1, "decode", [0], 1)] * 3,
        (4, "prompt", [3], 2),
        *[(1, "decode", [0], 2)] * 3,
    ]
    assert passes(subject) == one_round * 4  # the first is not timed
    assert probe.calls == [1, 1, 1, 1, 2, 2, 2, 2] * 3
    assert all(len(result.samples) == len(result.reads) == 3 for result in results)
    assert results[0].limit is results[0].share_of_limit is None
    assert results[3].limit == pytest.approx(20e9 / results[3].bytes_per_token)


class FakeRunner:
    def __init__(self, name, log):
        self.name, self.log = name, log

    def run(self, test, threads):
        self.log.append((self.name, test.name, threads))
        return 0.5

    def bytes_per_token(self, test):
        return 1000

    def core_seconds(self):
        return 0.0


def test_runners_take_turns():
    log = []
    runners = [FakeRunner("ours", log), FakeRunner("theirs", log)]
    results = measure(runners, [(Case(0, 4), 1), (Case(8, 0), 2)], 2, FakeProbe())
    assert log == [(name, *what) for what in (("tg4", 1), ("pp8", 2)) for name in ("ours", "theirs")] * 3
    assert [result.runner.name for result in results] == ["ours", "theirs"] * 2
    assert [result.median for result in results] == [8, 8, 16, 16]


def test_the_share_is_the_median_of_runs_beside_their_own_bandwidth():
    result = Result(None, Case(0, 8), 2, 2_000_000_000, [5.0, 8.0, 9.0], [20.0, 20.0, 36.0])
    assert result.share_of_limit == pytest.approx(0.5)  # of 0.5, 0.8 and 0.5
    assert result.median == 8.0
    assert result.limit == pytest.approx(10.0)
    facts = result.to_dict()
    assert (facts["median_ts"], facts["min_ts"], facts["max_ts"]) == (8.0, 5.0, 9.0)


def test_cost_is_per_token(subject, monkeypatch, tmp_path):
    counter = tmp_path / "intel-rapl:0" / "energy_uj"
    counter.parent.mkdir()
    counter.write_text("0\n")
    run, busy = subject.run, iter(range(1000))

    def spend(test, threads):
        counter.write_text(str(int(counter.read_text()) + 6_000_000))
        return run(test, threads)

    monkeypatch.setattr(subject, "run", spend)
    monkeypatch.setattr(time, "process_time", lambda: float(next(busy)))
    (result,) = measure([subject], [(Case(0, 3), 1)], 5, FakeProbe(), lambda: CostMeter(tmp_path))
    facts = result.to_dict()
    assert facts["joules_per_token"] == pytest.approx(2)  # 6 J for 3 tokens, but for the run that is not timed
    assert facts["core_seconds_per_token"] == pytest.approx(1 / 3)
    (result,) = measure([subject], [(Case(0, 3), 1)], 1, FakeProbe(), lambda: CostMeter(tmp_path / "none"))
    assert result.to_dict()["joules_per_token"] is None


def test_the_probe_reads_its_buffer():
    assert ReadProbe(1 << 16).gb_per_second(1) > 0
