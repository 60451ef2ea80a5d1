"""`NativeCache`, the keys and values of a native decoder where Hugging Face's `generate` has a `Cache`."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from tmac.hf.native_attachment import Attachment
from tmac.runtime.speculation.stats import SpeculationStats


class NativeCache(Cache):
    """Keys and values of what `native_generate` has read and written, for a later call to go on from.

    Pass an empty one as `past_key_values`, or take the one that `return_dict_in_generate=True` gives back, and pass it
    again with all ids so far, or with the new ones and the attention mask of all. What the next call asks for is
    compared with what is here token by token, and only the rest is computed: the text never depends on the cache.

    Copies (`copy.deepcopy`) share memory until they differ. It cannot be pickled, and belongs to the weights that it
    was made with.

    Attributes:
        speculation: what the model's draft did in the last call, a `SpeculationStats`; None without a draft.

    Example:
        >>> cache = tmac.hf.NativeCache()
        >>> out = model.generate(ids, past_key_values=cache, custom_generate=tmac.native_generate)
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.attachment: Attachment | None = None
        self.sequences: list[int] = []
        self.tokens: list[list[int]] = []  # of each sequence, without padding
        self.ids: Tensor | None = None  # [batch, columns], with padding: what a caller may leave out the next time
        self.speculation: SpeculationStats | None = None
        self._finalizer: Any = None

    def open(self, attachment: Attachment, batch: int) -> None:
        """Makes the cache ready for `batch` sequences of this attachment.

        Raises:
            ValueError: it holds those of another model, of older weights, or another number of them.
        """
        if self.attachment is None:
            self._own(attachment, [attachment.create() for _ in range(batch)], [[] for _ in range(batch)])
        elif self.attachment is not attachment:
            raise ValueError(
                "[native_generate] past_key_values were made by another model, or before this one's weights changed"
            )
        elif len(self.sequences) != batch:
            raise ValueError(
                f"[native_generate] past_key_values hold {len(self.sequences)} sequences, but {batch} are to be "
                "generated"
            )

    def keep_common(self, row: int, wanted: Sequence[int]) -> list[int]:
        """Cuts a sequence to what it shares with `wanted`, and gives the tokens that come next: at least one."""
        assert self.attachment is not None
        here = self.tokens[row]
        common = min(len(here), len(wanted) - 1)
        if here[:common] != wanted[:common]:
            common = next(i for i in range(common) if here[i] != wanted[i])
        if common < len(here) and not self.attachment.truncate(self.sequences[row], common):
            self.attachment.release([self.sequences[row]])
            self.sequences[row] = self.attachment.create()
            common = 0
        del here[common:]
        return list(wanted[common:])

    def close(self) -> None:
        """Frees the sequences; the cache is empty then."""
        if self._finalizer is not None:
            self._finalizer()
        self.attachment, self.sequences, self.tokens, self.ids, self._finalizer = None, [], [], None, None

    def _own(self, attachment: Attachment, sequences: list[int], tokens: list[list[int]]) -> None:
        self.attachment, self.sequences, self.tokens = attachment, sequences, tokens
        self._finalizer = weakref.finalize(self, attachment.release, sequences)
        self._finalizer.atexit = False

    def _copy_rows(self, rows: Sequence[int], to: NativeCache) -> None:
        """Makes `to`, which may be this cache, hold copies of these rows."""
        if self.attachment is None:
            return
        attachment, ids = self.attachment, None if self.ids is None else self.ids[list(rows)]
        forks = [attachment.fork(self.sequences[row], len(self.tokens[row])) for row in rows]
        tokens = [list(self.tokens[row]) for row in rows]
        to.close()
        to._own(attachment, forks, tokens)
        to.ids = ids

    # What transformers asks of a cache.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch, with padding, that need not be given again."""
        return 0 if self.ids is None else self.ids.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last columns, counted by a negative number; a positive one is the number that stays."""
        if self.ids is not None and tokens_to_remove != 0:
            self.ids = self.ids[:, :tokens_to_remove]

    def reset(self) -> None:
        """Empties the cache."""
        self.close()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was."""
        self._copy_rows(beam_idx.tolist(), self)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows of these numbers, or those where a mask is true."""
        rows = torch.arange(len(self.sequences))[indices]
        self._copy_rows(rows.tolist(), self)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        self._copy_rows([row for row in range(len(self.sequences)) for _ in range(repeats)], self)

    @property
    def batch_size(self) -> int:
        """The number of rows; -1 while the cache is empty."""
        return len(self.sequences) or -1

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses: only the native decoder fills it."""
        raise ValueError(
            "[NativeCache] transformers' own forward pass cannot use this cache: give "
            "custom_generate=tmac.native_generate to generate(), or another cache"
        )

    def __len__(self) -> int:
        return 0 if self.attachment is None else int(self.attachment.weights.config["num_layers"])

    def __repr__(self) -> str:
        return f"NativeCache(batch_size={self.batch_size}, columns={self.get_seq_length()})"

    def __deepcopy__(self, memo: dict[int, Any]) -> NativeCache:
        return self.__copy__()

    def __copy__(self) -> NativeCache:
        copied = NativeCache()
        self._copy_rows(range(len(self.sequences)), copied)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("[NativeCache] keys and values of a native decoder cannot be pickled")
