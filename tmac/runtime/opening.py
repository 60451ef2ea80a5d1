"""What an engine of a checkpoint consists of: weights, all of them in memory or not, and a draft if one is wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmac.runtime.hub import local_path
from tmac.runtime.loading import EngineParts, load_engine_parts
from tmac.runtime.native import Decoder, core
from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.drafts import Draft
from tmac.runtime.speculation.model_draft import CHUNK, ModelDraft
from tmac.runtime.speculation.names import parse_draft
from tmac.runtime.speculation.opening import AUTO_PLANES, PLANES_CHUNK, draft_positions, open_decoder
from tmac.runtime.speculation.speculator import MOST_ROWS
from tmac.runtime.speculation.vocabulary import check_vocabulary
from tmac.runtime.streaming.load import StreamedModel
from tmac.runtime.streaming.memory import cache_bytes, workspace_bytes

MAX_BATCH = 64  # texts at a time, where there is no limit of memory
PLANES_CONTEXT = 1024  # positions of a text for planes with a decoder of their own; longer ones it reads from behind


@dataclass(frozen=True)
class OpenedEngine:
    """A checkpoint that is ready to run.

    Args:
        parts: of the target.
        decoder: of the target.
        cache_type: of its keys and values.
        max_batch: texts at a time.
        draft: None without one.
        controller: what passes of target and draft cost.
        streamed: None where everything is in memory.
    """

    parts: EngineParts
    decoder: Decoder
    cache_type: str
    max_batch: int
    draft: Draft | None
    controller: Controller | None
    streamed: StreamedModel | None


def open_engine(
    path: Any,
    *,
    draft: str | None,
    memory_limit: int | str | None,
    cache_type: str,
    max_positions: int | None,
    chunk_size: int,
    max_batch: int | None,
    kept_positions: int,
    num_threads: int,
    **options: Any,
) -> OpenedEngine:
    """Loads a checkpoint and what speeds it up; arguments as of `Engine.from_pretrained`.

    Another model that drafts is loaded first: what it takes is part of the limit. `requantize` is for both.

    Raises:
        FormatError: a checkpoint is damaged.
        TypeError, ValueError: an argument is wrong, the draft does not fit the model, or the limit is too small.
    """
    name = parse_draft(draft)
    streamed = guesser = other = None
    if memory_limit is not None:
        streamed = StreamedModel(
            memory_limit,
            cache_type=cache_type,
            positions=max_positions,
            rows=chunk_size,
            texts=max_batch,
            context=options.get("context_length"),
            resident_planes=name.planes or None,
            optional_planes=AUTO_PLANES if name.auto else (),
            planes_bytes=lambda config, context: _pass_bytes(
                config, cache_type, draft_positions(context), PLANES_CHUNK
            ),
            planes_context=PLANES_CONTEXT,
        )
    if name.model:
        path = local_path(path, options.get("revision"))  # a wrong one is told before another model is loaded
        other = load_engine_parts(
            name.model, requantize=options.get("requantize", ()), progress=options.get("progress")
        )
        positions = 0
        if streamed is not None:
            context = min(streamed.most_positions, other.context_length)
            kept_positions, positions = min(kept_positions, context // 2), draft_positions(context)
            streamed.reserved = _pass_bytes(other.model_config, cache_type, positions, CHUNK)
        guesser = ModelDraft(
            core.Decoder(other.model, cache_type=cache_type, max_positions=positions),
            f"model:{name.model}",
            context_length=other.context_length,
            kept_positions=kept_positions,
            num_threads=num_threads,
        )
    if streamed is not None:
        parts = load_engine_parts(path, make_model=streamed.load, **options)
        max_positions, max_batch = streamed.positions, streamed.texts
    else:
        parts = load_engine_parts(path, plane_layout=name.planes > 0, **options)
    if other is not None:
        check_vocabulary(parts, other, f"draft={f'model:{name.model}'!r}")
    decoder, opened, controller = open_decoder(
        name,
        parts.model,
        guesser,
        vocab_size=int(parts.model_config["vocab_size"]),
        cache_type=cache_type,
        max_positions=max_positions or 0,
        num_threads=num_threads,
        planes_context=streamed.planes_context if streamed is not None else 0,
    )
    return OpenedEngine(parts, decoder, cache_type, max_batch or MAX_BATCH, opened, controller, streamed)


def _pass_bytes(config: Mapping[str, Any], cache_type: str, positions: int, rows: int) -> int:
    """What a draft takes beside its weights."""
    return cache_bytes(config, cache_type, positions) + workspace_bytes(config, rows, MOST_ROWS)
