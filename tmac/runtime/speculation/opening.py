"""From what `draft=` says to a draft for an engine."""

from __future__ import annotations

from typing import Any

from tmac.runtime.native import Decoder, core
from tmac.runtime.speculation.combined import CombinedDraft
from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.drafts import Draft
from tmac.runtime.speculation.grow import MOST_AHEAD
from tmac.runtime.speculation.measure import LEAST_GAIN, gain, measure
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.names import DraftName
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.speculation.rows import MOST_CARRIED, tree_runner
from tmac.runtime.speculation.speculator import MOST_ROWS

AUTO_PLANES = (4, 3)
PLANES_CHUNK = 32  # rows of a prompt in a pass of planes with a decoder of their own: its buffers are small


def make_planes(model: Any, name: DraftName) -> DraftName:
    """Prepares the target's own planes as its draft, before it has a decoder.

    Args:
        model: of the compiled core.
        name: what is wanted.

    Returns:
        The same name; in place of "auto" an n-gram draft and the planes that the model can give.

    Raises:
        ValueError: the weights have no such planes.
    """
    if name.planes:
        if not hasattr(model, "make_draft"):
            raise ValueError(f"draft: planes:{name.planes} needs a compiled core with drafts of planes")
        model.make_draft(name.planes)
    for planes in AUTO_PLANES if name.auto and hasattr(model, "make_draft") else ():
        try:
            model.make_draft(planes)
        except ValueError:
            continue
        return DraftName(ngram=True, planes=planes, auto=True)
    return DraftName(ngram=True, auto=True) if name.auto else name


def draft_positions(context: int) -> int:
    """Of the cache of a draft's own decoder: of a text, of kept ones, and of the trees behind a text."""
    return context + context // 2 + MOST_CARRIED + MOST_ROWS + MOST_AHEAD


def open_decoder(
    name: DraftName,
    model: Any,
    other: Draft | None,
    *,
    vocab_size: int,
    cache_type: str,
    max_positions: int,
    num_threads: int,
    planes_context: int = 0,
) -> tuple[Decoder, Draft | None, Controller | None]:
    """A decoder, its draft if one is wanted, and then what their passes cost.

    Args:
        name: which draft.
        model: of the target.
        other: the draft of another model, where the name has one.
        vocab_size: of the target.
        cache_type: of the cache.
        max_positions: of the cache; 0: no limit.
        num_threads: of passes; 0: those of the process.
        planes_context: positions of a text in a decoder that planes have of their own; 0: they share the target's.

    Raises:
        ValueError: the target has no such planes.
    """
    name = make_planes(model, name)
    decoder: Decoder = core.Decoder(model, cache_type=cache_type, max_positions=max_positions)
    if name.empty:
        return decoder, None, None
    run, controller = tree_runner(decoder, num_threads), Controller(MOST_ROWS)
    draft: Draft | None = None
    if name.planes and planes_context:
        own = core.Decoder(model.draft, cache_type=cache_type, max_positions=draft_positions(planes_context))
        kind = f"planes:{name.planes}"
        draft = ModelDraft(
            own,
            kind,
            context_length=planes_context,
            kept_positions=planes_context // 2,
            num_threads=num_threads,
            chunk=PLANES_CHUNK,
        )
    elif name.planes:
        draft = PlanesDraft(run, name.planes)
    kind = draft.name if draft is not None else ""
    measure(decoder, run, controller, vocab_size=vocab_size, num_threads=num_threads, planes=kind)
    if name.auto and kind and gain(controller, kind) < LEAST_GAIN:
        draft = None
    draft = other or draft
    if name.ngram:
        draft = NgramDraft() if draft is None else CombinedDraft(NgramDraft(), draft)
    return decoder, draft, controller
