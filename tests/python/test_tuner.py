"""What is measured, what is chosen, what is kept, and when it is followed."""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
from tuning import W4, FakeTimer, pairs, use_cache

import tmac
from tmac import Codes, QuantSpec, UnsupportedSpecError, _core, tuner
from tmac.tuning_cache import PairTimes

SHAPE = (W4, 48, 96)


def make_codes(spec=W4, n=48, k=96):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 2**spec.bits, (n, k)).astype(np.uint8)
    return Codes(spec, codes, rng.normal(size=(n, spec.num_groups(k))).astype(np.float16))


def packed_pair(codes):
    packed = codes.pack()
    return packed.kernel, packed.prompt_kernel


def test_there_is_something_to_choose_on_every_machine():
    assert len(pairs()) > 1


@pytest.mark.parametrize("spec", [W4, QuantSpec(2, 64, "ternary"), QuantSpec(8, -1), QuantSpec(3, activation="float")])
@pytest.mark.parametrize("shape", [(1, 1), (33, 70)])
def test_every_candidate_is_measured(spec, shape):
    rows = _core.time_kernels(spec, *shape, tokens=[1, 9, 20], num_threads=1, runs=5)
    assert [row[:2] for row in rows] == pairs(spec)
    for _, _, samples in rows:
        assert [len(each) in (1, 5) for each in samples] == [True] * 3
        assert all(seconds > 0 for each in samples for seconds in each)
    assert any(len(samples[0]) == 5 for _, _, samples in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out_features": 0}, "out_features"),
        ({"in_features": 0}, "in_features"),
        ({"in_features": 1 << 19}, "in_features"),
        ({"tokens": []}, "tokens"),
        ({"tokens": [0]}, "tokens"),
        ({"tokens": [513]}, "tokens"),
        ({"runs": 0}, "runs"),
        ({"num_threads": -1}, "num_threads"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _core.time_kernels(**{"spec": W4, "out_features": 8, "in_features": 8, **arguments})


def test_the_medians_are_taken(monkeypatch):
    samples = [[1.0, 9.0, 2.0], [3.0], [4.0, 4.0, 8.0]]
    monkeypatch.setattr(_core, "time_kernels", lambda *_: [("a", "b", samples)])
    (times,) = tuner.measure(*SHAPE, 1)
    assert times == PairTimes("a", "b", {1: 2.0, 8: 3.0, 128: 4.0})
    assert list(times.seconds.values()) == [statistics.median(each) for each in samples]


def times(name, one, eight, prompt):
    return PairTimes(name, name, {1: one, 8: eight, 128: prompt})


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([times("a", 1, 1, 9), times("b", 2, 2, 1)], "a"),  # decoding comes first
        ([times("a", 4, 4, 1), times("b", 2, 7, 1)], "b"),  # sqrt(14) < 4
        ([times("a", 1, 1, 9), times("b", 1.02, 1.02, 4)], "b"),  # a tie: prompts decide
        ([times("a", 1.02, 1, 4), times("b", 1, 1, 4), times("c", 0.99, 1, 4.05)], "a"),  # noise: the default
        ([times("a", 2, 2, 1)], "a"),
    ],
)
def test_the_choice(rows, best):
    assert tuner.choose(rows).decode == best


def test_a_choice_is_kept_and_packing_follows_it(timer, tmp_path):
    default = packed_pair(make_codes())
    report = tmac.tune([SHAPE, SHAPE])
    (shape,) = report.shapes
    assert (shape.choice.decode, shape.choice.prompt) == pairs()[-1] != default
    assert shape.measured
    assert len(timer.calls) == 1
    assert packed_pair(make_codes()) == pairs()[-1]
    assert packed_pair(make_codes(n=49)) == default  # another shape
    assert packed_pair(make_codes(QuantSpec(4, 32, fixed_zero=7.5))) == default  # another spec
    assert make_codes().pack(default[0]).kernel == default[0]  # who names a kernel gets it
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".lock"]


def test_packing_tensors_follows_it_too(timer):
    tmac.tune([SHAPE])
    packed = tmac.codes.pack_tensors(make_codes().to_tensors(), W4, 96)
    assert (packed.kernel, packed.prompt_kernel) == pairs()[-1]


def test_another_process_finds_the_choice(timer, monkeypatch):
    first = tmac.tune([SHAPE])
    monkeypatch.setattr(tuner, "_caches", {})
    again = tmac.tune([SHAPE])
    assert len(timer.calls) == 1
    assert not again.shapes[0].measured
    assert again.shapes[0].choice == first.shapes[0].choice


def test_force_measures_again(timer):
    tmac.tune([SHAPE])
    timer.fastest = pairs()[0]
    assert tmac.tune([SHAPE], force=True).shapes[0].measured
    assert packed_pair(make_codes()) == pairs()[0]
    assert len(timer.calls) == 2


def test_a_choice_holds_for_one_number_of_threads(timer):
    default = packed_pair(make_codes())
    assert tmac.tune([SHAPE], num_threads=tmac.get_num_threads() + 1).machine.threads == tmac.get_num_threads() + 1
    assert packed_pair(make_codes()) == default
    with pytest.raises(ValueError, match="num_threads"):
        tmac.tune([SHAPE], num_threads=0)


def test_an_unsupported_spec_is_refused_before_anything_is_measured(timer, monkeypatch):
    unsupported = QuantSpec(4, 32, fast_aggregation=True)  # so it is with TMAC_ISA=avx512 and no VBMI
    select = _core.select_kernel

    def select_some(spec):
        if spec == unsupported:
            raise UnsupportedSpecError("no kernel")
        return select(spec)

    monkeypatch.setattr(_core, "select_kernel", select_some)
    with pytest.raises(UnsupportedSpecError):
        tmac.tune([SHAPE, (unsupported, 8, 8)])
    assert timer.calls == []


@pytest.mark.parametrize("zero_point", ["fixed", "offset"])
def test_two_level_scales_are_measured(zero_point):
    spec = QuantSpec(4, 32, zero_point=zero_point, scale_format="two_level")
    rows = _core.time_kernels(spec, 8, 300, (1,), 1, runs=1)
    assert [row[:2] for row in rows] == _core.candidate_kernels(spec)


@pytest.mark.parametrize("variable", [*tuner.PINS, "TMAC_TUNING"])
def test_the_environment_wins(timer, monkeypatch, tmp_path, variable):
    default = packed_pair(make_codes())
    tmac.tune([SHAPE])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setenv(variable, "off")  # the core has read its own already
    assert packed_pair(make_codes()) == default
    assert tmac.tune([SHAPE], force=True).shapes[0].measured
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_pins_win_in_a_process_of_their_own(timer, tmp_path):
    shipped = run(PACK, tmp_path, TMAC_TUNING="off").stdout.split()
    timer.fastest = next(pair for pair in pairs() if list(pair) != shipped)
    tmac.tune([SHAPE], num_threads=1)
    assert run(PACK, tmp_path).stdout.split() == list(timer.fastest)
    assert "_lut_" in run(PACK, tmp_path, TMAC_METHOD="lut").stdout.split()[0]
    assert run(PACK, tmp_path, TMAC_ISA="scalar").stdout.split()[0] == "qgemm_lut_w4_scalar"
    assert run(PACK, tmp_path, TMAC_KERNEL="qgemm_lut_w4_scalar").stdout.split()[0] == "qgemm_lut_w4_scalar"
    assert run(PACK, tmp_path, TMAC_TUNING="off").stdout.split() == shipped


def test_hidden_features_have_choices_of_their_own(timer, tmp_path):
    present = [name for name, has in tmac.cpu_features().items() if has]
    if not present:
        pytest.skip("this CPU has no feature to hide")
    hidden = {"TMAC_CPU_FEATURES": f"-{present[-1]}"}
    shipped = run(PACK, tmp_path, TMAC_TUNING="off", **hidden).stdout.split()
    timer.fastest = next(pair for pair in pairs() if list(pair) != shipped)
    tmac.tune([SHAPE], num_threads=1)
    assert run(PACK, tmp_path).stdout.split() == list(timer.fastest)
    assert run(PACK, tmp_path, **hidden).stdout.split() == shipped


def test_an_unknown_switch_is_an_error(timer, monkeypatch):
    monkeypatch.setenv("TMAC_TUNING", "maybe")
    with pytest.raises(ValueError, match=r"TMAC_TUNING.*'maybe'"):
        make_codes().pack()
    with pytest.raises(ValueError, match=r"TMAC_TUNING.*'maybe'"):
        tmac.tune([SHAPE])


PACK = """
import numpy as np, tmac
spec = tmac.QuantSpec(bits=4, group_size=32)
tmac.set_num_threads(1)
packed = tmac.Codes(spec, np.zeros((48, 96), np.uint8), np.ones((48, 3), np.float16)).pack()
print(packed.kernel, packed.prompt_kernel)
"""


def child_environment(folder, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TMAC_")}
    return {**clean, "TMAC_CACHE_DIR": str(folder), **environment}


def run(code, folder, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=child_environment(folder, **environment),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )


# Tunes one shape that all tune and one of its own, when the file `go` is there; prints how many were measured.
TOGETHER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {folder!r})
from tuning import W4, FakeTimer
import tmac
from tmac import tuner
tuner.measure = FakeTimer()
index, go = int(sys.argv[1]), Path(sys.argv[2])
Path(sys.argv[3]).touch()
while not go.exists():
    time.sleep(0.001)
report = tmac.tune([(W4, 8, 8), (W4, 16 + index, 32)], num_threads=1)
print(sum(shape.measured for shape in report.shapes))
"""


def test_sixteen_processes_at_once_leave_a_valid_cache(monkeypatch, tmp_path, repository):
    count = 16
    cache, signals = tmp_path / "cache", tmp_path / "signals"
    signals.mkdir()
    code = TOGETHER.format(folder=str(repository / "tests" / "python"))
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, str(i), str(signals / "go"), str(signals / f"ready{i}")],
            env=child_environment(cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    try:
        while len(list(signals.iterdir())) < count and all(child.poll() is None for child in children):
            threading.Event().wait(0.01)
        (signals / "go").touch()
        outputs = [child.communicate(timeout=120) for child in children]
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert [child.returncode for child in children] == [0] * count, outputs
    assert [errors for _, errors in outputs] == [""] * count
    assert sum(int(out) for out, _ in outputs) == count + 1  # who came later found the common shape
    (path,) = cache.glob("*.json")
    assert len(json.loads(path.read_text())["entries"]) == count + 1
    assert list(cache.glob("*.tmp")) == []
    use_cache(monkeypatch, cache)
    monkeypatch.setattr(tuner, "measure", FakeTimer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = tmac.tune([(W4, 8, 8), *((W4, 16 + i, 32) for i in range(count))], num_threads=1)
    assert not any(shape.measured for shape in report.shapes)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt even where this run was started in the background, with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_soon(seconds=0.3):
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_ends_a_measurement(ctrl_c):
    timer = interrupt_soon()  # its thread needs the GIL: the measurement has let it go
    with pytest.raises(KeyboardInterrupt):
        _core.time_kernels(W4, 256, 256, num_threads=1, runs=1_000_000)  # for hours
    timer.join()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_keeps_what_was_tuned_and_lets_the_lock_go(timer, monkeypatch):
    tmac.tune([SHAPE])

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuner, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tmac.tune([(W4, 5, 5)])
    report = tmac.tune([SHAPE, (W4, 5, 5)])
    assert [shape.measured for shape in report.shapes] == [False, True]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to itself")
def test_ctrl_c_ends_the_wait_for_another_process(timer, ctrl_c):
    cache = tuner.open_cache(tmac.get_num_threads())
    with cache.lock():
        soon = interrupt_soon()
        with pytest.raises(KeyboardInterrupt):
            tmac.tune([SHAPE])
        soon.join()
    assert tmac.tune([SHAPE]).shapes[0].measured


def test_the_report_is_json(timer):
    values = json.loads(json.dumps(tmac.tune([SHAPE]).to_dict()))
    (shape,) = values["shapes"]
    assert QuantSpec.from_dict(shape["spec"]) == W4
    assert (shape["out_features"], shape["in_features"]) == SHAPE[1:]
    assert [(row["decode"], row["prompt"]) for row in shape["times"]] == pairs()
    assert all(set(row["seconds"]) == {"1", "8", "128"} for row in shape["times"])
    assert values["machine"]["cpu"] == _core.cpu_model()


def test_a_real_measurement_is_kept(monkeypatch, tmp_path):
    use_cache(monkeypatch, tmp_path)
    (shape,) = tmac.tune([SHAPE]).shapes
    assert shape.measured
    assert (shape.choice.decode, shape.choice.prompt) in pairs()
    assert packed_pair(make_codes()) == (shape.choice.decode, shape.choice.prompt)
