"""A native decoder over the weights of a Hugging Face model, found again by the model and by nothing else."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from torch.nn import Module

from tmac import _core
from tmac.hf.native_draft import DraftChoice, choose_draft, open_draft, prepare_planes
from tmac.hf.native_weights import NativeWeights, read_weights
from tmac.nn import PackedModule
from tmac.threads import get_num_threads

CacheType = Literal["f32", "f16", "int8"]
Ints = NDArray[np.int32]

# Beside the models, so that copies, pickles and saved files of a model know nothing of it.
_ATTACHMENTS: WeakKeyDictionary[Any, Attachment] = WeakKeyDictionary()
_LOCK = threading.Lock()


class Attachment:
    """A native model over the memory of a Hugging Face model, and a decoder. Its calls may come from any thread.

    Args:
        weights: of the model.
        cache_type: element type of the KV cache; None is f32 where no activation is rounded, else f16.
        choice: the draft.
    """

    def __init__(self, weights: NativeWeights, cache_type: CacheType | None, choice: DraftChoice) -> None:
        self.weights = weights
        self.requested, self.choice = cache_type, choice
        self.cache_type: CacheType = cache_type or ("f32" if weights.exact else "f16")
        self.model = weights.build()
        prepared = prepare_planes(choice, self.model)
        self.decoder = _core.Decoder(self.model, self.cache_type)
        self._lock = threading.Lock()  # the decoder serves one thread at a time
        self._dropped: deque[int] = deque()
        self._tree: int | None = None  # the sequence behind which the decoder has a token tree
        self.drafting = open_draft(prepared, self.model, self.decoder, self, self.cache_type)

    @property
    def has_windows(self) -> bool:
        """Whether a layer attends to the last positions only."""
        return any(self.weights.config["windows"])

    def forward(
        self,
        sequences: list[int],
        tokens: list[Ints],
        phase: Literal["prompt", "decode"],
        wanted: list[Ints],
        rope_lengths: list[int],
    ) -> NDArray[np.float32]:
        """Appends tokens to the sequences; the logits of the wanted rows, `[sum of wanted, vocab_size]`."""
        with self._lock:
            self._release_dropped()
            self._tree = None
            return self.decoder.forward(sequences, tokens, phase, wanted, rope_lengths, get_num_threads())

    def forward_tree(
        self,
        sequence: int,
        tokens: Ints,
        parents: Ints,
        *,
        num_threads: int = 0,
        first: int = 0,
        draft: bool = False,
    ) -> NDArray[np.float32]:
        """`Decoder.forward_tree`. Another thread may run passes between the calls for one tree."""
        with self._lock:
            self._release_dropped()
            known = first if self._tree == sequence else 0
            self._tree = None
            threads = num_threads or get_num_threads()
            logits = self.decoder.forward_tree(sequence, tokens, parents, threads, known, draft)
            self._tree = sequence
            return logits[first - known :]

    def keep(self, sequence: int, nodes: Sequence[int], tokens: Sequence[int]) -> None:
        """`Decoder.keep`. `tokens`: of the nodes, which are evaluated again if another thread has run a pass."""
        with self._lock:
            mine, self._tree = self._tree == sequence, None
            if mine:
                self.decoder.keep(sequence, nodes)
                return
            length = self.decoder.length(sequence)
            for position, token in enumerate(tokens, length + 1):
                ids, none = np.array([token], np.int32), np.empty(0, np.int32)
                self.decoder.forward([sequence], [ids], "decode", [none], [position], get_num_threads())

    def create(self) -> int:
        """A new, empty sequence."""
        with self._lock:
            return self.decoder.create()

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence that begins with the first `length` positions of another and shares their memory."""
        with self._lock:
            return self.decoder.fork(sequence, length)

    def truncate(self, sequence: int, length: int) -> bool:
        """Cuts a sequence to `length` positions; False, and nothing, where a window has dropped what it would need."""
        with self._lock:
            return self.decoder.truncate(sequence, length)

    def release(self, sequences: Sequence[int]) -> None:
        """Frees sequences, now or at the next call. Waits for nothing, for it may be called while one is running."""
        self._dropped.extend(sequences)
        if self._lock.acquire(blocking=False):
            try:
                self._release_dropped()
                self.decoder.trim()
            finally:
                self._lock.release()

    def _release_dropped(self) -> None:
        while self._dropped:
            self.decoder.release(self._dropped.popleft())


def attach(model: Any, *, cache_type: CacheType | None = None, draft: Any = None) -> Any:
    """Makes a native decoder over the packed weights of a Hugging Face model, without copying them.

    `model.generate(ids, custom_generate=tmac.native_generate)` decodes with it. The model stays what it is: its own
    forward pass, copies, pickles and `save_pretrained` do not change. Norms and biases are copied. Where anything of
    the model has changed since, the next `generate` attaches it again, or says why that cannot be.

    Args:
        model: a causal language model of transformers, on the CPU, of a family that the engine decodes; its layers may
            be `QuantLinear`, `QuantEmbedding`, `QuantExperts` and float ones of f32, f16 or bf16.
        cache_type: what the KV cache holds, "f32", "f16" or "int8"; None is "f32" where every packed layer has
            `activation="float"`, else "f16".
        draft: guesses tokens of a text that is generated alone, which is the same without it: "ngram", "planes:K",
            "model:PATH", "ngram+planes:K", "ngram+model:PATH", "auto" (docs/speculation.md), or another model of
            transformers that the native runtime decodes, with the same vocabulary: of it the size is checked alone.
            For planes, weights that are packed in an order without such planes are repacked, to the same results.

    Returns:
        the model.

    Raises:
        ValueError: the native runtime does not know the family, or cannot compute what the model does; it says what is
            in the way. Also of the draft.
        TypeError: `draft` is neither a name nor a model.

    Example:
        >>> model = tmac.attach(tmac.from_pretrained("Qwen2.5-0.5B-Instruct-GPTQ-Int4"))
    """
    if cache_type not in (None, "f32", "f16", "int8"):
        raise ValueError(f"[attach] cache_type is {cache_type!r}, but expected 'f32', 'f16', 'int8' or None")
    _attach(model, cache_type, choose_draft(draft))
    return model


def detach(model: Any) -> None:
    """Frees what `attach` has made, once no cache of `native_generate` uses it; a model without it stays as it is."""
    if isinstance(model, Module):
        with _LOCK:
            _ATTACHMENTS.pop(model, None)


def current_attachment(model: Any) -> Attachment:
    """The attachment of the model as it is now; made, or made again, where there is none or the model has changed.

    Raises:
        ValueError: as `attach`; a model that has become unfit is detached.
    """
    with _LOCK:
        old = _ATTACHMENTS.get(model)
    if old is None:
        return _attach(model, None, choose_draft(None))
    return _attach(model, old.requested, old.choice)


def _attach(model: Any, cache_type: CacheType | None, choice: DraftChoice) -> Attachment:
    try:
        weights = read_weights(model)
    except ValueError:
        detach(model)
        raise
    with _LOCK:
        old = _ATTACHMENTS.get(model)
        is_same = old is not None and old.requested == cache_type and old.choice.same_as(choice)
        if old is not None and is_same and old.weights.same_as(weights):
            return old
        _ATTACHMENTS.pop(model, None)
        new = _new_attachment(model, weights, cache_type, choice)
        _ATTACHMENTS[model] = new
        return new


def _new_attachment(
    model: Any, weights: NativeWeights, cache_type: CacheType | None, choice: DraftChoice
) -> Attachment:
    try:
        return Attachment(weights, cache_type, choice)
    except ValueError:
        layers = [module for module in model.modules() if isinstance(module, PackedModule)]
        if not choice.name.planes or not sum(layer.repack_in_planes_() for layer in layers):
            raise
    return Attachment(read_weights(model), cache_type, choice)
