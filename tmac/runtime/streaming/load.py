"""A model under a memory limit: its packed file, the plan, and the model that reads from it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tmac import _core
from tmac.runtime.loading import OpenModel
from tmac.runtime.streaming.memory import cache_bytes, parse_memory, resident_bytes, workspace_bytes
from tmac.runtime.streaming.packed_file import PackedFile, packed_file
from tmac.runtime.streaming.packed_index import PackedIndex, Section
from tmac.runtime.streaming.plan import MemoryPlan, make_plan

POSITIONS = 4096  # that the KV cache is made for unless somebody says
BATCH = 8  # texts at a time, the same
EVALUATED_ROWS = 16  # whose logits are asked for at a time
MOST_FOR_PLANES = 1.1  # times as much may be read in a pass for the sake of a decoder that the planes have
SLACK = 16 << 20  # what the interpreter, the threads and the allocator take on top
SLOWER = "TMAC_STREAM_LIMIT"  # bytes per second


class StreamedModel:
    """Loads a model under a memory limit, and knows how it is divided.

    Args:
        limit: of the whole process: bytes, or a text as `parse_memory` reads it.
        cache_type: of keys and values.
        positions: of all texts together; None: those of one text, at most POSITIONS.
        rows: of a pass.
        texts: at a time; None: BATCH.
        context: positions of one text; None: the model's.
        resident_planes: leading planes of every matrix that stay in memory, for a draft; None: whole layers only.
        optional_planes: numbers of leading planes of which the first one that fits stays, where not everything does.
        planes_bytes: configuration and positions of a text -> what a decoder of the leading planes takes.
        planes_context: positions that it has at most.

    Attributes:
        plan: how memory is divided, once a model is loaded.
        planes_context: positions of a text that a decoder of the leading planes has room for, then; 0: there is none.
        resident_planes: that stay, then.
        reserved: bytes that something else in this process will still take.
        path: of the packed file, then.
        evaluated_rows: whose logits may be asked for in a pass.

    Raises:
        TypeError, ValueError: the limit is no size.
    """

    def __init__(
        self,
        limit: int | str,
        *,
        cache_type: str,
        positions: int | None,
        rows: int,
        texts: int | None,
        context: int | None = None,
        resident_planes: int | None = None,
        optional_planes: Sequence[int] = (),
        planes_bytes: Callable[[Mapping[str, Any], int], int] | None = None,
        planes_context: int = 0,
    ) -> None:
        self.limit, self.cache_type, self.rows = parse_memory("memory_limit", limit), cache_type, rows
        self.positions, self.texts, self._context = positions, texts or BATCH, context
        self.resident_planes, self.evaluated_rows = resident_planes, EVALUATED_ROWS
        self._planes_bytes, self.planes_context = planes_bytes, planes_context
        self._optional_planes, self.reserved = tuple(optional_planes), 0
        self.plan: MemoryPlan | None = None
        self.path: Path | None = None
        self._model: Any = None

    def load(self, opened: OpenModel, *, progress: bool | None = None, **options: Any) -> Any:
        """The model.

        Args:
            opened: as `open_model` gives it.
            progress: True or False; None shows a bar on a terminal when it takes over two seconds.
            options: `activation`, `head_bits`, `embedding_bits` and `plane_layout` of `load_weights`.

        Raises:
            ValueError: the limit is too small; the message says how much is needed. Else as `load_weights`.
            RuntimeError: the packed file cannot be read.
            OSError: it cannot be written.
        """
        config = opened.description.config
        prefixes = self.resident_planes is not None or bool(self._optional_planes or options.get("plane_layout"))
        options = {**options, "plane_layout": prefixes}
        self.positions = self.positions or min(self.most_positions, config["context_length"])
        file = packed_file(opened, options, progress)
        try:
            self._model = self._load(config, file)
        except _core.DamagedFileError:
            file.path.unlink(missing_ok=True)
            self._model = self._load(config, packed_file(opened, options, progress))
        slower = os.environ.get(SLOWER)
        if slower:
            self.slow_down(parse_memory(SLOWER, slower))
        return self._model

    @property
    def most_positions(self) -> int:
        """Of all texts together; a model of a shorter context has fewer."""
        return self.positions or min(POSITIONS, self._context or POSITIONS)

    def statistics(self) -> dict[str, Any] | None:
        """What reading has taken so far: `_core.Model.stream_statistics`; None where everything is in memory."""
        found: dict[str, Any] | None = self._model.stream_statistics()
        return found

    def io_since(self) -> Callable[[], tuple[float, int]]:
        """A function that says how many seconds passes have waited for the disk, and what was read, since its last
        call."""
        seen = (0.0, 0)

        def io() -> tuple[float, int]:
            nonlocal seen
            found = self.statistics()
            now = (found["seconds_waiting"], found["bytes_read"]) if found else seen
            before, seen = seen, now
            return now[0] - before[0], now[1] - before[1]

        io()
        return io

    def slow_down(self, bytes_per_second: float) -> None:
        """Reads no faster from now on, to stand for a slower disk; 0: as fast as it goes. Also `TMAC_STREAM_LIMIT`."""
        self._model.limit_stream(bytes_per_second)

    def _load(self, config: dict[str, Any], file: PackedFile) -> Any:
        index, self.path = file.index, file.path
        gc.collect()
        _core.release_memory()
        self.plan = self._plan(index, config, self._fixed(config, file))
        builder = _core.ModelBuilder(config)
        on_disk = _alone(index) > 0 and self.plan.embedding == 0
        ranges = [(_pieces(index.top), len(index.top) - on_disk)]
        ranges += [(_pieces(layer), count) for layer, count in zip(index.layers, self.plan.resident, strict=True)]
        try:
            builder.open_packed(str(file.path), file.size, file.modified_ns, ranges, slots=self.plan.slots)
            _place(builder, file)
        except ValueError as error:
            raise _core.DamagedFileError(f"{file.path}: {error}") from error
        return builder.build()

    def _plan(self, index: PackedIndex, config: Mapping[str, Any], fixed: Mapping[str, int]) -> MemoryPlan:
        def plan(planes: int | None, **more: int) -> MemoryPlan:
            divided = {name: size + more.get(name, 0) for name, size in fixed.items()}
            return make_plan(self.limit, index.layers, divided, embedding=_alone(index), resident_planes=planes)

        context, self.planes_context = min(self.planes_context, self.most_positions, config["context_length"]), 0
        whole = plan(None) if self._optional_planes else plan(self.resident_planes)
        for planes in self._optional_planes if whole.streamed else ():
            with suppress(ValueError):
                found = plan(planes)
                self.resident_planes, whole = planes, found
                break
        if whole.streamed and self.resident_planes is not None and self._planes_bytes is not None and context:
            with suppress(ValueError):  # then the planes share the target's decoder
                found = plan(self.resident_planes, draft=self._planes_bytes(config, context))
                if found.streamed <= MOST_FOR_PLANES * whole.streamed:
                    self.planes_context, whole = context, found
        return whole

    @property
    def streams(self) -> bool:
        """Whether passes read from the disk."""
        return self.plan is not None and self.plan.streamed > 0

    def _fixed(self, config: Mapping[str, Any], file: PackedFile) -> dict[str, int]:
        index, rows = file.index, max(self.texts, self.evaluated_rows)
        assert self.positions is not None
        return {
            "the process": resident_bytes() + SLACK,
            "head": sum(section.nbytes for section in index.top) + index.vectors.nbytes - _alone(index),
            "KV cache": cache_bytes(config, self.cache_type, self.positions),
            "workspace": workspace_bytes(config, self.rows, rows),
            "draft": self.reserved,
        }


def _place(builder: Any, file: PackedFile) -> None:
    """Tells the builder where everything is."""
    vectors = dict(file.vectors)
    for each in file.index.matrices:
        bias = vectors.pop(f"{each.name}.bias", None)
        if each.head >= 0:
            head = file.index.heads[each.head].content
            builder.add_placed(each.name, each.layer, each.offset, head, each.regions, bias)
        else:
            builder.add_placed_floats(each.name, each.layer, each.offset, each.dtype, each.shape, bias)
    for name, vector in vectors.items():
        builder.add_floats(name, vector, "F32")


def _alone(index: PackedIndex) -> int:
    """Bytes of an embedding that is not the head, too: the last section outside of the layers."""
    return index.top[-1].nbytes if len(index.top) > 1 else 0


def _pieces(sections: tuple[Section, ...]) -> list[tuple[int, int, int]]:
    return [(section.begin, section.end, section.checksum) for section in sections]
