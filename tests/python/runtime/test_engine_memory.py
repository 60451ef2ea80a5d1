"""What engines leave in a process that loads and drops many of them."""

import subprocess
import sys

import pytest

CYCLES, WARM_UP = 1000, 200
# Far below what a lost tokenizer, cache or model of each cycle would take, and above how much of a heap is between use.
MOST_PER_CYCLE = 5 << 10

CODE = """
import gc, string, sys
import tmac

PROMPT = " ".join(string.ascii_letters)  # 52 words: tokenizers keep those that they have seen

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

texts = set()
for cycle in range({cycles}):
    with tmac.Engine.from_pretrained(sys.argv[1]) as engine:
        texts.add(engine.generate(PROMPT, max_new_tokens=4, ignore_eos=True).text)
    if cycle == {warm_up}:
        del engine
        gc.collect()
        before = resident()
del engine
gc.collect()
assert len(texts) == 1
assert not {{"torch", "transformers"}} & sys.modules.keys()
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_thousand_engines_leave_no_memory(repository, tmp_path):
    code = CODE.format(cycles=CYCLES, warm_up=WARM_UP)
    model = repository / "tests" / "data" / "tiny_llama.gguf"
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MOST_PER_CYCLE * (CYCLES - WARM_UP)
