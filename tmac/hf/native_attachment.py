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
from tmac.hf.native_weights import NativeWeights, read_weights
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
    """

    def __init__(self, weights: NativeWeights, cache_type: CacheType | None) -> None:
        self.weights = weights
        self.requested = cache_type
        self.cache_type: CacheType = cache_type or ("f32" if weights.exact else "f16")
        self.model = weights.build()
        self.decoder = _core.Decoder(self.model, self.cache_type)
        self._lock = threading.Lock()  # the decoder serves one thread at a time
        self._dropped: deque[int] = deque()

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
            return self.decoder.forward(sequences, tokens, phase, wanted, rope_lengths, get_num_threads())

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


def attach(model: Any, *, cache_type: CacheType | None = None) -> Any:
    """Makes a native decoder over the packed weights of a Hugging Face model, without copying them.

    `model.generate(ids, custom_generate=tmac.native_generate)` decodes with it. The model stays what it is: its own
    forward pass, copies, pickles and `save_pretrained` do not change. Norms and biases are copied. Where anything of
    the model has changed since, the next `generate` attaches it again, or says why that cannot be.

    Args:
        model: a causal language model of transformers, on the CPU, of a family that the engine decodes; its layers may
            be `QuantLinear`, `QuantEmbedding`, `QuantExperts` and float ones of f32, f16 or bf16.
        cache_type: what the KV cache holds, "f32", "f16" or "int8"; None is "f32" where every packed layer has
            `activation="float"`, else "f16".

    Returns:
        the model.

    Raises:
        ValueError: the native runtime does not know the family, or cannot compute what the model does; it says what is
            in the way.

    Example:
        >>> model = tmac.attach(tmac.from_pretrained("Qwen2.5-0.5B-Instruct-GPTQ-Int4"))
    """
    if cache_type not in (None, "f32", "f16", "int8"):
        raise ValueError(f"[attach] cache_type is {cache_type!r}, but expected 'f32', 'f16', 'int8' or None")
    _attach(model, cache_type)
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
    return _attach(model, old.requested if old is not None else None)


def _attach(model: Any, cache_type: CacheType | None) -> Attachment:
    try:
        weights = read_weights(model)
    except ValueError:
        detach(model)
        raise
    with _LOCK:
        old = _ATTACHMENTS.get(model)
        if old is not None and old.requested == cache_type and old.weights.same_as(weights):
            return old
        _ATTACHMENTS.pop(model, None)
        new = Attachment(weights, cache_type)
        _ATTACHMENTS[model] = new
        return new
