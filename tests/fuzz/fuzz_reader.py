"""Fuzzes the reader of one checkpoint format with atheris (libFuzzer for Python).

    python tests/fuzz/fuzz_reader.py FORMAT [libFuzzer's options] [FOLDER OF INPUTS]

An input is a program of edits (tests/python/hostile.py) of one of the small checkpoints that tests/python knows for the
format: tensors are renamed, dropped, reshaped, moved, filled, settings replaced, files cut, bytes flipped. Mutating the
bytes of the files themselves would hardly ever get beyond the length of a header. Whatever comes out is opened, and
every weight of it read; only FormatError, UnsupportedSpecError and OSError may be raised.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
sys.path.append(str(ROOT / "tests" / "python"))

with atheris.instrument_imports(include=["tmac.formats", "tmac.codes", "tmac.spec"]):
    import hostile
    import small_checkpoints

    from tmac.formats import READERS

    for module in ("float_file", "gguf_checkpoint", *READERS.values()):
        __import__(f"tmac.formats.{module}")


class ProvidedChoice:
    """Choices that libFuzzer makes."""

    def __init__(self, data):
        self.provider = atheris.FuzzedDataProvider(data)

    def below(self, count):
        return self.provider.ConsumeIntInRange(0, count - 1) if count > 1 else 0

    def of(self, values):
        return values[self.below(len(values))]


def main():
    name = sys.argv.pop(1)
    samples = small_checkpoints.FORMATS[name]()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
        folder = Path(scratch, "model")

        def test(data):
            choice = ProvidedChoice(data)
            files = hostile.damaged(choice.of(samples), choice)
            shutil.rmtree(folder, ignore_errors=True)
            hostile.read_or_refuse(small_checkpoints.write_files(folder, files))

        atheris.Setup(sys.argv, test)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
