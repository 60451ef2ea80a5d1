"""Speculative decoding in Hugging Face's `generate`: the draft of an attachment, and the text that it guesses for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tmac import _core
from tmac.hf.native_weights import NativeWeights, read_weights
from tmac.runtime.loading import load_engine_parts
from tmac.runtime.native import Floats
from tmac.runtime.speculation.combined import CombinedDraft
from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.drafts import Draft
from tmac.runtime.speculation.measure import LEAST_GAIN, gain, measure
from tmac.runtime.speculation.model_draft import ModelDraft
from tmac.runtime.speculation.names import DraftName, parse_draft
from tmac.runtime.speculation.ngram import NgramDraft
from tmac.runtime.speculation.opening import make_planes
from tmac.runtime.speculation.planes import PlanesDraft
from tmac.runtime.speculation.rows import tree_runner
from tmac.runtime.speculation.speculator import MOST_ROWS, Speculator
from tmac.runtime.speculation.stats import SpeculationStats

NO_LIMIT = 1 << 31


@dataclass(frozen=True)
class DraftChoice:
    """Which draft is wanted.

    Args:
        name: as `draft=` of the engine says it.
        weights: of a Hugging Face model in place of a name.
    """

    name: DraftName
    weights: NativeWeights | None = None

    def same_as(self, other: DraftChoice) -> bool:
        """Whether it asks for what `other` asks for."""
        if self.weights is None or other.weights is None:
            return self == other
        return self.weights.same_as(other.weights)


def choose_draft(draft: Any) -> DraftChoice:
    """What `attach(draft=...)` asks for.

    Raises:
        TypeError, ValueError: it is no draft's name, and no model that the native runtime decodes.
    """
    if not isinstance(draft, nn.Module):
        return DraftChoice(parse_draft(draft))
    return DraftChoice(DraftName(model=type(draft).__name__), read_weights(draft))


class Drafting:
    """The draft of an attachment. It guesses for one text at a time.

    Args:
        draft: guesses.
        controller: what its passes and the target's cost.
    """

    def __init__(self, draft: Draft, controller: Controller) -> None:
        self.draft, self.controller = draft, controller
        self.busy = threading.Lock()


def open_draft(choice: DraftChoice, model: Any, decoder: Any, attachment: Any, cache_type: Any) -> Drafting | None:
    """The draft that was chosen, None if none was.

    Args:
        choice: of `choose_draft`; where it asks for planes, `model` has a draft of them.
        model: the native one.
        decoder: over it, which nobody else uses yet.
        attachment: whose `forward_tree` the draft calls later.
        cache_type: of another model's cache.

    Raises:
        ValueError: another model has another vocabulary.
        FormatError, OSError: of loading it.
    """
    name = choice.name
    if name.empty:
        return None
    controller = Controller(MOST_ROWS)
    draft: Draft | None = PlanesDraft(tree_runner(attachment), name.planes) if name.planes else None
    kind = draft.name if draft is not None else ""
    measure(decoder, tree_runner(decoder), controller, vocab_size=model.vocab_size, planes=kind)
    if name.auto and kind and gain(controller, kind) < LEAST_GAIN:
        draft = None
    if name.model:
        other, positions = _other_model(choice)
        if other.vocab_size != model.vocab_size:
            raise ValueError(
                f"[attach] draft: expected a vocabulary of {model.vocab_size} tokens, as the model's, found "
                f"{other.vocab_size}"
            )
        own: Any = _core.Decoder(other, cache_type)
        draft = ModelDraft(own, f"model:{name.model}", context_length=positions)
    if name.ngram:
        draft = NgramDraft() if draft is None else CombinedDraft(NgramDraft(), draft)
    assert draft is not None
    return Drafting(draft, controller)


def prepare_planes(choice: DraftChoice, model: Any) -> DraftChoice:
    """Makes the model's planes its draft where they are wanted; what is left of "auto" then. Raises ValueError."""
    return DraftChoice(make_planes(model, choice.name), choice.weights)


def _other_model(choice: DraftChoice) -> tuple[Any, int]:
    """A model and the positions that it was made for."""
    if choice.weights is not None:
        return choice.weights.build(), int(choice.weights.config["context_length"])
    parts = load_engine_parts(choice.name.model)
    return parts.model, parts.context_length


class GuessedText:
    """A text of one sequence, as the speculator sees it.

    Args:
        tokens: so far; all but the last have been evaluated.
        seq: in the attachment's decoder.
        room: tokens that may still come.
        take: chooses a token from logits `[1, vocab]`; returns it, and whether the text goes on.
    """

    def __init__(self, tokens: list[int], seq: int, room: int, take: Callable[[Tensor], tuple[int, bool]]) -> None:
        self.tokens, self.generated = tokens, 0
        self.seq: int | None = seq
        self.speculation: SpeculationStats | None = None
        self.goes_on = True
        self._room, self._take = room, take

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self._room - self.generated

    def abandoned(self) -> bool:
        """Whether it has ended."""
        return not self.goes_on

    def accept(self, logits: Floats) -> None:
        """The next token from the logits of the last one, f32 `[vocab]`."""
        token, self.goes_on = self._take(torch.from_numpy(logits.copy())[None])
        self.tokens.append(token)
        self.generated += 1


def generate_guessed(
    text: GuessedText, drafting: Drafting, attachment: Any, kept: list[int], plain: Callable[[], Floats]
) -> None:
    """Goes on with a text until it ends.

    Args:
        text: whose prompt and first token are there.
        drafting: which nobody else uses.
        attachment: of the sequence.
        kept: the tokens that the sequence holds, which grow with it.
        plain: evaluates the last token, and appends it to `kept`; its logits `[vocab]`.
    """

    def keep(seq: int, rows: Any) -> None:
        new = text.tokens[len(kept) : len(kept) + len(rows)]
        attachment.keep(seq, rows, new)
        kept.extend(new)

    speculator = Speculator(
        drafting.draft,
        run=tree_runner(attachment),
        keep=keep,
        vocab_size=attachment.model.vocab_size,
        controller=drafting.controller,
    )
    try:
        speculator.prompt(text, len(kept))
        while text.goes_on:
            speculator.round(text, lambda: text.accept(plain()), text.accept)
    finally:
        speculator.close(text)
