"""Which settings of which tool make the table: what tools call sizes between about 2 and 8 bits."""

from __future__ import annotations

OURS = "tmac"
LLAMA_CPP = "llama.cpp"
MODULES = {"gptqmodel": "gptqmodel", "hqq": "hqq", "auto-round": "auto_round", OURS: "ours"}

# Blocks of 256 columns: a matrix of another width gets a larger type, so that several names mean nearly the same file.
TYPES: tuple[str, ...] = ("Q4_0", "IQ4_XS", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ2_XXS", "Q3_K_L", "Q5_K_M", "Q2_K")
TYPES += ("Q3_K_S", "IQ3_XXS", "Q2_0", "IQ3_S", "IQ2_XS", "IQ2_S", "Q5_K_S", "Q6_K", "Q8_0")
SMALLER_HEAD = " --token-embedding-type "
SMALLER = tuple(
    f"{name}{SMALLER_HEAD}{head}" for name, head in (("Q4_0", "q4_0"), ("Q2_0", "q4_0"), ("IQ4_NL", "iq4_nl"))
)
GRIDS = ("W4 g128", "W3 g128", "W4 g64", "W3 g64", "W2 g64", "W4 g32 asym", "W2 g32")
SIX, FOUR = " + head 6 bits", " + head 4 bits"
HEADS = (SIX, FOUR)
BUDGETS = (2.5, 2.75, 3.0, 3.25, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0)


def settings(tool: str) -> tuple[str, ...]:
    """Of a tool, the first ones first."""
    if tool == OURS:
        return tuple(f"{bits:g} bits" for bits in BUDGETS)
    if tool == LLAMA_CPP:
        return TYPES + SMALLER
    if tool == "hqq":  # its grids always have a zero point
        grids = ("W4 g64 asym", "W3 g64 asym", "W2 g64 asym", "W4 g128 asym", "W2 g32 asym")
        return tuple(grid + head for grid in grids for head in HEADS)
    return tuple(grid + head for grid in GRIDS for head in HEADS)


TOOLS = (LLAMA_CPP, "gptqmodel", "hqq", "auto-round", OURS)
