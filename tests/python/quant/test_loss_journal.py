"""Losses in a file that grows: what is there is not measured again, and what is damaged is."""

import numpy as np
import pytest

from tmac.quant import loss_journal
from tmac.quant.loss_journal import measured_windows

WINDOWS = [list(range(length)) for length in (5, 5, 5, 5, 5, 3)]
EXPECTED = np.concatenate([np.arange(1, len(window)) + 0.25 * number for number, window in enumerate(WINDOWS)])


class Meter:
    """Measures windows, and remembers how many at a time."""

    def __init__(self):
        self.calls = []

    def __call__(self, windows):
        self.calls.append(len(windows))
        for number, window in enumerate(windows, len(WINDOWS) - len(windows)):
            yield np.arange(1, len(window)) + 0.25 * number


def test_what_is_measured_is_kept(tmp_path):
    path, meter = tmp_path / "new" / "losses", Meter()
    assert np.array_equal(measured_windows(path, WINDOWS, meter), EXPECTED)
    assert np.array_equal(measured_windows(path, WINDOWS, meter), EXPECTED)
    assert np.array_equal(measured_windows(path, WINDOWS[:2], meter), EXPECTED[:8])
    assert meter.calls == [6]


def test_more_windows_go_on_behind_those_that_are_there(tmp_path):
    path = tmp_path / "losses"
    measured_windows(path, WINDOWS[:2], lambda windows: iter([EXPECTED[:4], EXPECTED[4:8]]))
    meter = Meter()
    assert np.array_equal(measured_windows(path, WINDOWS, meter), EXPECTED)
    assert meter.calls == [4]


@pytest.mark.parametrize(
    ("kept", "together", "measured"), [(0, 1, 6), (39, 1, 6), (40, 1, 5), (130, 1, 3), (130, 2, 4)]
)
def test_a_file_that_was_cut_off_goes_on_with_its_last_whole_group(tmp_path, kept, together, measured):
    path, meter = tmp_path / "losses", Meter()
    measured_windows(path, WINDOWS, Meter())
    path.write_bytes(path.read_bytes()[:kept])
    assert np.array_equal(measured_windows(path, WINDOWS, meter, together), EXPECTED)
    assert meter.calls == [measured]
    assert path.stat().st_size == 8 * (len(EXPECTED) + len(WINDOWS))


@pytest.mark.parametrize("place", [80, 87, 100, 112])
def test_what_is_damaged_is_measured_again(tmp_path, place):
    path, meter = tmp_path / "losses", Meter()
    measured_windows(path, WINDOWS, Meter())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert np.array_equal(measured_windows(path, WINDOWS, meter), EXPECTED)
    assert meter.calls == [4]


def test_a_file_of_zeros_is_no_measurement(tmp_path):
    path, meter = tmp_path / "losses", Meter()
    path.write_bytes(bytes(40 * 6))
    assert np.array_equal(measured_windows(path, WINDOWS, meter), EXPECTED)


def test_a_full_disk_keeps_the_windows_before(tmp_path, monkeypatch):
    path, meter, append = tmp_path / "losses", Meter(), loss_journal._append
    room = iter([True, True, False])

    def full(file, content):
        if not next(room):
            raise OSError(28, "No space left on device")
        append(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(loss_journal, "_append", full)
        with pytest.raises(OSError, match="No space"):
            measured_windows(path, WINDOWS, Meter())
    assert np.array_equal(measured_windows(path, WINDOWS, meter), EXPECTED)
    assert meter.calls == [4]
