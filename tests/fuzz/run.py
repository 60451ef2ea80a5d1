"""Runs every fuzz target for some seconds, two at a time: python tests/fuzz/run.py SECONDS [FORMAT...].

Fails when one of them finds an exception that no reader may raise, an input that takes over 10 seconds, or one that
takes over 2 GB. The input is kept beside, in `fuzz-FORMAT-...`, and run again by naming it after the format.
"""

import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "python"))
AT_A_TIME = 2
LONGEST_INPUT = 400  # bytes of choices


def fuzz(name, seconds):
    """(name, exit status, what libFuzzer printed)"""
    with tempfile.TemporaryDirectory() as corpus:
        for index in range(64):  # programs of edits to start from
            Path(corpus, str(index)).write_bytes(bytes((index * 37 + at * 11) % 256 for at in range(12 + index)))
        options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=2048", f"-max_len={LONGEST_INPUT}"]
        options += [f"-artifact_prefix=fuzz-{name}-", "-print_final_stats=1", "-seed=1"]
        command = [sys.executable, str(HERE / "fuzz_reader.py"), name, *options, corpus]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    return name, done.returncode, done.stdout


def main():
    from small_checkpoints import FORMATS

    seconds, names = int(sys.argv[1]), sys.argv[2:] or list(FORMATS)
    failed = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        for name, status, output in pool.map(lambda name: fuzz(name, seconds), names):
            counts = re.findall(r"number_of_executed_units: (\d+)", output)
            print(f"{name:20} {'failed' if status else 'ok':7} {(counts or ['?'])[-1]} inputs", flush=True)
            if status:
                failed.append(name)
                print(output[-6000:])
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
