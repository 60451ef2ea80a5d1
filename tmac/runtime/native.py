"""What the runtime uses of the compiled core, as types (csrc/bindings/bind_runtime.cpp)."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

core: Any = importlib.import_module("tmac._core")


class Decoder(Protocol):
    """A model with a KV cache of several sequences. Used by one thread at a time."""

    def create(self) -> int: ...
    def fork(self, seq: int, length: int, /) -> int: ...
    def release(self, seq: int, /) -> None: ...
    def truncate(self, seq: int, length: int, /) -> bool: ...
    def length(self, seq: int, /) -> int: ...
    def forward(
        self,
        ids: list[int],
        tokens: list[Ids],
        phase: str,
        wanted: list[Ids],
        rope_lengths: list[int] | None = None,
        num_threads: int = 0,
    ) -> Floats: ...
    def forward_tree(
        self, sequence: int, tokens: Ids, parents: Ids, num_threads: int = 0, **options: Any
    ) -> Floats: ...
    def keep(self, sequence: int, nodes: Sequence[int], /) -> None: ...
    def save(self, seq: int, /) -> Any: ...
    def restore(self, data: Any, /) -> int: ...


class Sampler(Protocol):
    """Draws tokens; the n-th draw depends on the seed, n and the logits alone."""

    def sample(self, logits: Floats, history: Ids, mask: Words | None, prompt_size: int) -> int: ...


class Tokenizer(Protocol):
    """What the runtime needs of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...
    def token_to_id(self, token: str) -> int | None: ...
    def to_json(self) -> str: ...


def is_cache_full(error: BaseException) -> bool:
    """Whether a call of the decoder failed because the cache may hold no more positions."""
    return any(kind.__name__ == "CacheFullError" for kind in type(error).__mro__)


def needed(module: str) -> Any:
    """A module that needs packages of an extra. Raises ImportError, which names the extra, where they are not there."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in ("tokenizers", "jinja2"):
            raise
        message = f"tmac.Engine needs {error.name}: pip install 'tmac-cpu[engine]'"
        raise ImportError(message, name=error.name) from error
