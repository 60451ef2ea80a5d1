"""What a run costs besides time: joules where the machine counts them, else the time that its cores were busy."""

from __future__ import annotations

import time
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class CostMeter:
    """Sums a counter over the parts of a run between start() and stop().

    RAPL counts microjoules of a whole package, other processes' included, and about once a millisecond: sums over many
    runs mean something, single short ones do not. Where there is no counter, or none that this user may read, `unit`
    is core-seconds: CPU time of this process, threads that spin at a barrier included.
    """

    def __init__(self, powercap: Path = POWERCAP) -> None:
        packages = sorted(
            path.parent for path in powercap.glob("intel-rapl:[0-9]*/energy_uj") if path.parent.name.count(":") == 1
        )
        self.packages = [path for path in packages if readable(path / "energy_uj")]
        self.unit = "J" if self.packages else "core-s"
        self.total = 0.0
        self.begin: list[float] = []

    def read(self) -> list[float]:
        if not self.packages:
            return [time.process_time()]
        return [1e-6 * int((path / "energy_uj").read_text()) for path in self.packages]

    def start(self) -> None:
        self.begin = self.read()

    def stop(self) -> None:
        for index, (before, after) in enumerate(zip(self.begin, self.read(), strict=True)):
            # The counter starts again at 0 after its largest value.
            self.total += after - before if after >= before else after - before + self.largest(index)

    def largest(self, index: int) -> float:
        return 1e-6 * int((self.packages[index] / "max_energy_range_uj").read_text()) if self.packages else 0.0


def readable(path: Path) -> bool:
    try:
        path.read_text()
    except OSError:
        return False
    return True
