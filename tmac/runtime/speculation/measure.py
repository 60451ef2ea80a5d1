"""What the target's and the draft's passes cost, measured before the first text."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from tmac.runtime.interrupts import allowed_interrupts
from tmac.runtime.native import Decoder, is_cache_full
from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.rows import RunTree

PROMPT = 16
ROWS = (2, 4, 8, 16)
REPEATS = 3
LONGEST = 1.0  # seconds, after which no further pass is measured
HOPED = 0.85  # share of right guesses with which a draft must pay
LEAST_GAIN = 1.05


def measure(
    decoder: Decoder,
    run: RunTree,
    controller: Controller,
    *,
    vocab_size: int,
    num_threads: int = 0,
    planes: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Times passes of some rows, and steps of a draft of the target's own planes.

    Args:
        decoder: of the target.
        run: its `forward_tree`.
        controller: takes the times.
        vocab_size: of the target.
        num_threads: of a pass.
        planes: the kind of the draft; empty: there is none.
        clock: seconds.
    """
    seq = decoder.create()
    begin = clock()
    ids = np.array([(7919 * place + 13) % vocab_size for place in range(max(PROMPT, *ROWS))], np.int32)

    def plain() -> None:
        with allowed_interrupts():
            decoder.forward([seq], [ids[:1]], "decode", [np.zeros(1, np.int32)], num_threads=num_threads)

    def chain(rows: int, *, draft: bool = False) -> None:
        run(seq, ids[:rows], np.arange(-1, rows - 1, dtype=np.int32), first=0, draft=draft)

    passes, drafts = controller.passes, controller.drafts
    what: list[tuple[Callable[[], None], Callable[[float], None]]] = [(plain, partial(passes.add, 1))]
    if planes:
        what.append((partial(chain, 1, draft=True), partial(drafts.add_step, planes)))
    what += [(partial(chain, rows), partial(passes.add, rows)) for rows in ROWS if rows <= passes.most_rows]
    shortest: dict[int, float] = {}  # others use this machine too
    try:
        with allowed_interrupts():
            decoder.forward([seq], [ids[:PROMPT]], "prompt", [np.empty(0, np.int32)], num_threads=num_threads)
        for place in REPEATS * list(range(len(what))):  # in turn: a slow moment is one for all of them
            at = clock()
            what[place][0]()
            now = clock()
            shortest[place] = min(now - at, shortest.get(place, math.inf))
            if now - begin > LONGEST:
                break
    except RuntimeError as error:
        if not is_cache_full(error):
            raise
    finally:
        decoder.release(seq)
    for place, seconds in shortest.items():
        what[place][1](seconds)


def gain(controller: Controller, kind: str, right: float = HOPED) -> float:
    """How many times faster than plain decoding chains of guesses are, if such a share of them is right.

    `(1 - a^(g+1)) / (1 - a) / (verify(g + 1) + g * step)` for the best number g of guesses (Leviathan et al.,
    arXiv 2211.17192), with the times that were measured.
    """
    passes, step, best, tokens = controller.passes, controller.drafts.step(kind), 1.0, 1.0
    for guesses in range(1, passes.most_rows):
        tokens += right**guesses
        best = max(best, tokens * passes.of(1) / (passes.of(guesses + 1) + guesses * step))
    return best
