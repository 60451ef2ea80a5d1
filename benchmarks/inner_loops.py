"""Inner loops of aarch64 objects: found in the disassembly, counted, and timed by LLVM's models of CPUs."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ITERATIONS = 500
EXTENSIONS = "+dotprod,+i8mm,+fullfp16,+fp16fml,+bf16"
MARK = "tmac_loop"  # csrc/kernels/neon/simd.h

# Multiply-adds of one instruction, by its mnemonic; those that take half a register have the same mnemonic with a 2.
PRODUCTS = {"sdot": 16, "udot": 16, "usdot": 16, "sudot": 16, "smmla": 32, "ummla": 32, "usmmla": 32}
I8MM = {"usdot", "sudot", "smmla", "ummla", "usmmla"}
WIDENING = re.compile(r"[su]ml[as]?l2?$|[su]mull2?$")
LOOKUPS = 16  # of one tbl


@dataclass(frozen=True)
class Loop:
    function: str
    marks: tuple[str, ...]  # labels inside it
    body: tuple[str, ...]  # instructions as llvm-mca reads them

    @property
    def products(self) -> int:
        """Multiply-adds of bytes in one turn."""
        return sum(products_of(line) for line in self.body)

    @property
    def needs_i8mm(self) -> bool:
        return any(line.split()[0] in I8MM for line in self.body)

    @property
    def lookups(self) -> int:
        """Table entries looked up in one turn."""
        return LOOKUPS * sum(line.split()[0] == "tbl" for line in self.body)


def products_of(line: str) -> int:
    mnemonic, _, operands = line.partition(" ")
    if WIDENING.match(mnemonic):
        return 8 if re.match(r"\s*v\d+\.8h", operands) else 0
    return PRODUCTS.get(mnemonic, 0)


def run(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr[:2000]}")
    return done.stdout


def loops_of(file: Path, objdump: str) -> list[Loop]:
    """The innermost loops of every function of an object, in its order."""
    symbols = run([objdump, "-t", str(file)])
    functions = {line.split()[-1] for line in symbols.splitlines() if re.match(r"[0-9a-f]+ .{6}F ", line)}
    text = run([objdump, "-d", "--no-show-raw-insn", f"--mattr={EXTENSIONS}", str(file)])
    return list(loops_in(text.splitlines(), functions))


def loops_in(listing: Iterable[str], functions: set[str]) -> Iterable[Loop]:
    function, marks = "", dict[int, str]()
    code: list[tuple[int, str]] = []
    for line in listing:
        if line.startswith("Disassembly of"):
            yield from loops_of_function(function, code, marks)
            function, code, marks = "", [], {}
        elif heading := re.match(r"([0-9a-f]+) <(.+)>:", line):
            if heading[2].startswith(MARK):
                marks[int(heading[1], 16)] = heading[2]
            elif heading[2] in functions:  # assembly has labels of its own
                yield from loops_of_function(function, code, marks)
                function, code, marks = heading[2], [], {}
        elif instruction := re.match(r"\s*([0-9a-f]+):\s+(\S.*)", line):
            code.append((int(instruction[1], 16), instruction[2]))
    yield from loops_of_function(function, code, marks)


def loops_of_function(function: str, code: list[tuple[int, str]], marks: dict[int, str]) -> Iterable[Loop]:
    place = {address: index for index, (address, _) in enumerate(code)}
    spans = []
    for index, (address, text) in enumerate(code):
        branch = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(0x[0-9a-f]+) <", text)
        if branch and int(branch[1], 16) <= address and int(branch[1], 16) in place:
            spans.append((place[int(branch[1], 16)], index))
    for first, last in spans:
        if any(first <= a and b <= last and (a, b) != (first, last) for a, b in spans):
            continue
        inside = tuple(name for address, name in marks.items() if code[first][0] <= address <= code[last][0])
        yield Loop(function, inside, tuple(plain(text) for _, text in code[first : last + 1]))


def plain(text: str) -> str:
    """An instruction without the disassembler's remarks; branches lead to a label at the loop's beginning."""
    text = re.sub(r"\s+", " ", text.split("//", maxsplit=1)[0]).strip()
    text = re.sub(r"^((?:b|b\.\w+|cbn?z|tbn?z) .*?)0x[0-9a-f]+ <.*>$", r"\1loop", text)
    return re.sub(r" <.*>$", "", text)


def cycles(loop: Loop, cpu: str, mca: str) -> float:
    """Cycles of one turn on LLVM's model of `cpu`, where every load hits the L1 cache."""
    text = "\n".join(("loop:", *loop.body, ""))
    command = [mca, "-mtriple=aarch64", f"-mcpu={cpu}", f"-mattr={EXTENSIONS}", f"-iterations={ITERATIONS}"]
    found = re.search(r"^Total Cycles:\s+(\d+)", run(command, text), re.MULTILINE)
    assert found is not None
    return int(found[1]) / ITERATIONS
