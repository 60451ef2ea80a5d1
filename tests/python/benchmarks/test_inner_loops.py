"""The loops that benchmarks.mca times are the innermost ones, with what they multiply."""

import pytest

LISTING = """
object.o: file format elf64-littleaarch64

Disassembly of section .text:

0000000000000000 <first>:
       0:      \tmov\tx1, #0x0                // =0
       4:      \tmov\tx2, #0x0
0000000000000008 <tmac_loop.mad.w4.m1.c16.r16.3>:
       8:      \tsdot\tv0.4s, v1.16b, v2.4b[1]
       c:      \tsmull2\tv3.8h, v4.16b, v5.16b
      10:      \tcbz\tx3, 0x18 <first+0x18>
      14:      \ttbl\tv0.16b, { v1.16b, v2.16b }, v3.16b
      18:      \tsubs\tx2, x2, #0x1
      1c:      \tb.ne\t0x8 <first+0x8>
      20:      \tb.ne\t0x4 <first+0x4>
      24:      \tret

0000000000000028 <label_1>:
      28:      \tb\t0x28 <label_1>
""".splitlines()


def test_the_innermost_loops_are_found():
    from benchmarks.inner_loops import loops_in

    loops = list(loops_in(LISTING, {"first"}))
    assert [(loop.function, len(loop.body)) for loop in loops] == [("first", 6), ("first", 1)]
    assert loops[0].marks == ("tmac_loop.mad.w4.m1.c16.r16.3",)
    assert (loops[0].products, loops[0].lookups, loops[0].needs_i8mm) == (16 + 8, 16, False)
    assert loops[0].body[2] == "cbz x3, loop"
    assert loops[0].body[-1] == "b.ne loop"


@pytest.mark.parametrize(
    ("instruction", "products"),
    [
        ("smmla v0.4s, v1.16b, v2.16b", 32),
        ("usdot v0.4s, v1.16b, v2.4b[0]", 16),
        ("smlal v0.8h, v1.8b, v2.8b", 8),
        ("smlal v0.4s, v1.4h, v2.4h", 0),  # of scales, not of weights
        ("add v0.4s, v1.4s, v2.4s", 0),
    ],
)
def test_products_are_counted(instruction, products):
    from benchmarks.inner_loops import products_of

    assert products_of(instruction) == products


def test_instructions_of_i8mm_are_known():
    from benchmarks.inner_loops import Loop

    assert Loop("f", (), ("smmla v0.4s, v1.16b, v2.16b", "b loop")).needs_i8mm
