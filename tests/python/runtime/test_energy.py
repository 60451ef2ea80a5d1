"""The cost of a run: a RAPL counter where there is one, else CPU time."""

import pytest


def package(folder, name, energy):
    path = folder / name
    path.mkdir(parents=True)
    (path / "energy_uj").write_text(f"{energy}\n")
    (path / "max_energy_range_uj").write_text("10000000\n")
    return path / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path):
    from tmac.runtime.energy import CostMeter

    first, second = package(tmp_path, "intel-rapl:0", 1_000_000), package(tmp_path, "intel-rapl:1", 5_000_000)
    package(tmp_path, "intel-rapl:0:0", 7)
    meter = CostMeter(tmp_path)
    assert meter.unit == "J"
    meter.start()
    first.write_text("3000000\n")
    second.write_text("5500000\n")
    meter.stop()
    assert meter.total == pytest.approx(2.5)


def test_a_counter_that_starts_again_counts_on(tmp_path):
    from tmac.runtime.energy import CostMeter

    counter = package(tmp_path, "intel-rapl:0", 9_000_000)
    meter = CostMeter(tmp_path)
    meter.start()
    counter.write_text("500000\n")
    meter.stop()
    assert meter.total == pytest.approx(1.5)


def test_without_a_counter_cpu_time_is_summed(tmp_path):
    from tmac.runtime.energy import CostMeter

    meter = CostMeter(tmp_path)
    assert meter.unit == "core-s"
    for _ in range(2):
        meter.start()
        sum(range(200_000))
        meter.stop()
    assert meter.total > 0
