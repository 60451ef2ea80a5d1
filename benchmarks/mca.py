"""Cycles per 256 weights of the NEON kernels' inner loops, and of other libraries', on LLVM's models of CPUs.

    python -m benchmarks.mca --build build/aarch64 --peer llama.cpp=FOLDER --peer KleidiAI=FOLDER --peer T-MAC=FOLDER

`--build`: a CMake build for aarch64 (.ci/neon makes one). Its commands compile csrc/kernels/neon once more, with labels
in the inner loops. `--peer`: a folder of objects of another library, compiled for aarch64 (docs/kernels.md says how);
nothing of another library is kept here. What a turn of a peer's loop multiplies is counted in its instructions.
Needs llvm-mca and llvm-objdump 19 or newer: older ones alias the CPUs to the Cortex-A57.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.inner_loops import MARK, Loop, cycles, loops_of, run

CPUS = ("neoverse-n1", "neoverse-v1", "apple-m1")
WITHOUT_I8MM = ("neoverse-n1", "apple-m1")
WEIGHTS = 256
LAYOUTS = {32: "planes", 20: "trits", 40: "trits"}  # by the columns of a loop
LUT_GROUP = 4  # columns per look-up, ours and T-MAC's
PANEL_TOKENS = 128  # that share an unpacked panel: kMaxTokens (kernel.h)
TMAC_FUNCTION = "tbl_g4_int8_float_update_impl"  # <has_scale, K, Bits, ActK, FastAggregation, ...>


@dataclass(frozen=True)
class PeerLoop:
    """Inner loops of a peer: which functions, and what their names do not say."""

    function: str  # regular expression
    width: str
    tokens: int


PEERS = {
    "llama.cpp": (
        PeerLoop("ggml_vec_dot_q1_0_q8_0", "w1", 1),
        PeerLoop("ggml_vec_dot_q2_(0_q8_0|K_q8_K)", "w2", 1),
        PeerLoop("ggml_vec_dot_tq[12]_0_q8_K", "w2", 1),  # ternary, as our two planes are
        PeerLoop("ggml_vec_dot_q3_K_q8_K", "w3", 1),
        PeerLoop("ggml_vec_dot_q4_(0_q8_0|K_q8_K)", "w4", 1),
        PeerLoop("ggml_gemv_q4_0_4x[48]_q8_0", "w4", 1),
        PeerLoop("ggml_vec_dot_q5_(0_q8_0|K_q8_K)", "w5", 1),
        PeerLoop("ggml_vec_dot_q6_K_q8_K", "w6", 1),
        PeerLoop("ggml_gemv_q6_K_8x[48]_q8_K", "w6", 1),
        PeerLoop("ggml_vec_dot_q8_0_q8_0", "w8", 1),
        PeerLoop("ggml_gemv_q8_0_4x[48]_q8_0", "w8", 1),
        PeerLoop("ggml_gemm_q4_0_4x[48]_q8_0", "w4", 4),
        PeerLoop("ggml_gemm_q5_K_8x[48]_q8_K", "w5", 4),
        PeerLoop("ggml_gemm_q6_K_8x[48]_q8_K", "w6", 4),
        PeerLoop("ggml_gemm_q8_0_4x[48]_q8_0", "w8", 4),
    ),
    "KleidiAI": (
        PeerLoop(r"kai_.*1x\d_qsu2\w*_neon_dotprod", "w2", 1),
        PeerLoop(r"kai_.*1x\d_qsi4\w*_neon_dotprod", "w4", 1),
        PeerLoop(r"kai_.*1x\d_qsi8\w*_neon_dotprod", "w8", 1),
        PeerLoop(r"kai_.*4x\d_qsu2\w*_neon_\w+", "w2", 4),
        PeerLoop(r"kai_.*4x\d_qsi4\w*_neon_\w+", "w4", 4),
        PeerLoop(r"kai_.*4x\d_qsi8\w*_neon_\w+", "w8", 4),
    ),
    "T-MAC": tuple(PeerLoop(rf"_Z\d+{TMAC_FUNCTION}ILb1ELi16ELi{bits}E\w+", f"w{bits}", 1) for bits in (1, 2, 3, 4)),
}


@dataclass(frozen=True)
class Row:
    width: str
    tokens: int  # the loop multiplies at once; cycles are per token
    who: str
    loop: str
    cycles: dict[str, float]  # per 256 weights and token, by CPU; none where the CPU lacks i8mm and the loop uses it

    def text(self, cpus: list[str]) -> str:
        per_cpu = " | ".join(f"{self.cycles[cpu]:.1f}" if cpu in self.cycles else "" for cpu in cpus)
        return f"| {self.width} | {self.tokens} | {self.who} | {self.loop} | {per_cpu} |"


def per_weights(loop: Loop, weights: float, args: argparse.Namespace) -> dict[str, float]:
    cpus = [cpu for cpu in args.cpus if not (loop.needs_i8mm and cpu in WITHOUT_I8MM)]
    return {cpu: round(cycles(loop, cpu, args.mca) * WEIGHTS / weights, 2) for cpu in cpus}


def compile_marked(build: Path, target: Path) -> Iterator[Path]:
    """The objects of csrc/kernels/neon, compiled as the build does, with labels in the inner loops."""
    cache = dict(re.findall(r"^(\w+):\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE))
    commands = run([cache["CMAKE_COMMAND"], "-S", cache["CMAKE_HOME_DIRECTORY"], "-B", str(build)]) and run(
        [cache["CMAKE_MAKE_PROGRAM"], "-C", str(build), "-t", "compdb"]
    )
    for entry in json.loads(commands):
        source = Path(entry["file"])
        if source.match("kernels/neon/qgemm_*.cpp"):
            words = shlex.split(entry["command"])
            output = target / f"{source.stem}.o"
            words[words.index("-o") + 1] = str(output)
            run(["env", "-C", entry["directory"], *words, "-DTMAC_MARK_LOOPS", "-MF", str(target / "depends")])
            yield output


def layout_of(bits: int, columns: int) -> str:
    """Of a loop of products."""
    if bits > 4:
        return "nibbles"
    return LAYOUTS.get(columns, "nibbles" if bits == 4 else "crumbs")


def our_rows(objects: list[Path], args: argparse.Namespace) -> Iterator[Row]:
    fills: dict[tuple[str, int, str], dict[str, float]] = {}
    panels: dict[tuple[str, int, int], dict[str, float]] = {}
    for path in objects:
        tech = path.stem.removeprefix("qgemm_")
        for loop in loops_of(path, args.objdump):
            for mark in loop.marks:
                method, *numbers = mark.removeprefix(f"{MARK}.").split(".")[:5]
                bits, tokens, columns, rows = (int(number[1:]) for number in numbers)
                layout = layout_of(bits, columns)
                found = per_weights(loop, columns * rows * tokens, args)
                if method == "fill":
                    fills[tech, bits, layout] = found
                elif method == "panel":
                    panels[tech, bits, tokens] = found
                else:
                    name = tech if method == "lut" else f"{tech} ({layout})"
                    yield Row(f"w{bits}", tokens, "tmac", name, found)
    for (tech, bits, layout), fill in fills.items():
        for (panel_tech, panel_bits, tokens), found in panels.items():
            if (panel_tech, panel_bits) == (tech, bits):
                shared = {cpu: round(found[cpu] + fill[cpu] / PANEL_TOKENS, 2) for cpu in found}
                yield Row(f"w{bits}", tokens, "tmac", f"{tech} (panel from {layout})", shared)


def peer_rows(peer: str, folder: Path, args: argparse.Namespace) -> Iterator[Row]:
    files = sorted(folder.glob("*.o"))
    if not files:
        raise SystemExit(f"--peer {peer}: no objects in {folder}")
    for path in files:
        for loop in loops_of(path, args.objdump):
            kind = next((one for one in PEERS[peer] if re.fullmatch(one.function, loop.function)), None)
            if kind is None or not (loop.products or loop.lookups):
                continue
            name, weights = loop.function.removeprefix("kai_").replace("matmul_clamp_f32_", ""), float(loop.products)
            who = peer
            if peer == "T-MAC":
                name = TMAC_FUNCTION
                who = f"{peer}, fast aggregation" if "Li16ELb1E" in loop.function else peer
                weights = loop.lookups * LUT_GROUP / int(kind.width[1:])
            yield Row(kind.width, kind.tokens, who, f"{path.stem}: {name}", per_weights(loop, weights, args))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--cpus", nargs="+", default=list(CPUS))
    parser.add_argument("--mca", default="llvm-mca-19")
    parser.add_argument("--objdump", default="llvm-objdump-19")
    parser.add_argument("--best", action="store_true", help="a row per library: its fastest loop on each CPU")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.peer = [tuple(one.partition("=")[::2]) for one in args.peer]
    for name, folder in args.peer:
        if name not in PEERS or not folder:
            parser.error(f"--peer {name}: not NAME=FOLDER with NAME one of {', '.join(PEERS)}")
    return args


def main() -> None:
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(our_rows(list(compile_marked(args.build, Path(folder))), args))
    for name, folder in args.peer:
        rows += peer_rows(name, Path(folder), args)
    rows = best_of(rows) if args.best else distinct(rows)
    rows = sorted(rows, key=lambda row: (row.tokens > 1, row.width, row.tokens, row.who != "tmac", row.who))
    print(f"| width | tokens | library | loop | {' | '.join(args.cpus)} |")
    print(f"|{'---|' * (4 + len(args.cpus))}")
    for row in rows:
        print(row.text(args.cpus))
    if args.json:
        report = {
            "command": ["python", "-m", "benchmarks.mca"],
            "mca": run([args.mca, "--version"]).split("\n")[1].strip(),
        }
        args.json.write_text(json.dumps({**report, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def distinct(rows: list[Row]) -> list[Row]:
    """A row per loop: the best, where a function is compiled with several sets of features or has several loops."""
    best: dict[tuple[str, int, str, str], Row] = {}
    for row in rows:
        key = (row.width, row.tokens, row.who, row.loop)
        if key not in best or sum(row.cycles.values()) < sum(best[key].cycles.values()):
            best[key] = row
    return list(best.values())


def best_of(rows: list[Row]) -> list[Row]:
    """A row per library, width and number of tokens: the fewest cycles that any of its loops takes on each CPU."""
    best: dict[tuple[str, int, str], Row] = {}
    for row in rows:
        panel_for_one = row.tokens == 1 and "panel" in row.loop  # its filling counts for a full panel's share only
        if row.tokens in (1, 4) and not panel_for_one:
            key = (row.width, row.tokens, row.who)
            merged = dict(best[key].cycles) if key in best else {}
            for cpu, found in row.cycles.items():
                merged[cpu] = min(found, merged.get(cpu, found))
            best[key] = Row(row.width, row.tokens, row.who, "", merged)
    return list(best.values())


if __name__ == "__main__":
    main()
