"""What of a model stays in memory under a limit, and what is read in every pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tmac.runtime.streaming.memory import written
from tmac.runtime.streaming.packed_index import Section

HUGE_PAGE = 2 << 20  # large buffers take whole ones
MARGIN = 4 << 20  # what a process may have more than one before it


@dataclass(frozen=True)
class MemoryPlan:
    """How memory is divided, in bytes.

    Args:
        limit: of the whole process.
        fixed: what everything else takes, by name; it does not depend on the plan.
        resident: for each layer how many of its sections stay in memory.
        embedding: of an embedding that is not the head, too: 0 where it stays on the disk.
        weights: of the layers that stay.
        ring: slots for what is read.
        streamed: that a pass reads.
        slots: of the ring.
    """

    limit: int
    fixed: Mapping[str, int]
    resident: tuple[int, ...]
    embedding: int
    weights: int
    ring: int
    streamed: int
    slots: int

    @property
    def total(self) -> int:
        """What the process will have at most."""
        return sum(self.fixed.values()) + self.embedding + self.weights + self.ring

    def __str__(self) -> str:
        parts = {**self.fixed, "embedding": self.embedding, "layers in memory": self.weights, "ring": self.ring}
        named = ", ".join(f"{name} {written(size)}" for name, size in parts.items() if size)
        return f"{written(self.total)} of {written(self.limit)}: {named}; {written(self.streamed)} are read in a pass"


def make_plan(
    limit: int,
    layers: Sequence[Sequence[Section]],
    fixed: Mapping[str, int],
    *,
    embedding: int = 0,
    resident_planes: int | None = None,
    slots: int = 2,
) -> MemoryPlan:
    """The plan under which most layers stay in memory as a whole.

    What is fixed and the leading planes come first, then as many whole layers as fit. Those that are read lie between
    them at equal distances, so that there is work while the next one is read. An embedding whose rows are only looked
    up comes last: a pass reads no more of it than the rows of its tokens.

    Args:
        limit: bytes of the whole process.
        layers: the sections of each layer, in the order of the file.
        fixed: name -> bytes of what is there in any case.
        embedding: bytes of an embedding that is not the head, too.
        resident_planes: so many leading planes of every matrix, and what belongs to them, stay in memory, for a draft.
        slots: layers that the ring holds.

    Raises:
        ValueError: even without a whole layer it is too much; the message says how much is needed, with what the next
            process may have more.
    """
    plans = [
        divide(limit, layers, fixed, embedding=each, resident_planes=resident_planes, slots=slots, whole=whole)
        for whole in range(len(layers), -1, -1)
        for each in ({embedding, 0} if whole == len(layers) else {0})
    ]
    plans.sort(key=lambda plan: (plan.streamed, -plan.embedding))
    for plan in plans:
        if plan.total <= limit:
            return plan
    least = min(plans, key=lambda plan: plan.total)
    needed = f"{written(least.total + MARGIN)}, found {written(limit)} ({least}; {written(MARGIN)} more to be safe)"
    message = f"memory_limit: this model needs at least {needed}"
    if resident_planes is not None:
        message += f"; draft=planes:{resident_planes} keeps so many planes of every layer in memory: others need less"
    raise ValueError(message)


def divide(
    limit: int,
    layers: Sequence[Sequence[Section]],
    fixed: Mapping[str, int],
    *,
    embedding: int = 0,
    resident_planes: int | None,
    slots: int,
    whole: int,
) -> MemoryPlan:
    """The plan with so many whole layers in memory, whether or not it is within the limit: see `make_plan`."""
    count = len(layers)
    resident, weights, streamed, largest, parts = [], 0, 0, 0, 0
    for index, sections in enumerate(layers):
        stays = (index + 1) * whole // count > index * whole // count
        number = len(sections) if stays else _leading(sections, resident_planes)
        rest = sum(section.nbytes for section in sections[number:])
        resident.append(number if rest else len(sections))
        weights += sum(section.nbytes for section in sections) - rest
        streamed += rest
        largest = max(largest, rest)
        parts += rest > 0
    slots = min(slots, parts)
    ring = slots * _pages(largest)
    return MemoryPlan(limit, dict(fixed), tuple(resident), embedding, _pages(weights), ring, streamed, max(1, slots))


def _leading(sections: Sequence[Section], planes: int | None) -> int:
    """Sections that hold something of the leading planes, or belong to them."""
    return 0 if planes is None else sum(section.plane < planes for section in sections)


def _pages(nbytes: int) -> int:
    return -(-nbytes // HUGE_PAGE) * HUGE_PAGE
