"""A Hugging Face model as a `tmac.evaluation.scorer.Scorer`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tmac._core import log_probabilities
from tmac.evaluation.scorer import Losses, begins_with, negative
from tmac.hf.pretrained import from_pretrained, load_tokenizer
from tmac.runtime.native import Floats

LOGIT_BYTES = 256 << 20
LONGEST = 1 << 30  # of a model that does not say how long its texts may be


class HFScorer:
    """A causal language model of transformers, with float or low-bit layers.

    Texts are evaluated in batches; a shorter one is filled up at its end, which a causal model cannot see. A low-bit
    layer chooses by the number of rows: the losses of a batch of 16 tokens and fewer may differ in rounding from the
    engine's, which takes every text as a prompt.

    Args:
        model: `model(input_ids=ids [texts, tokens])` has `.logits` `[texts, tokens, vocabulary]`.
        tokenizer: of transformers; None: texts are token ids, and windows begin with no special token.
        name: for tables; None: "hf".
        batch: texts in a forward pass at most; None: as many as have 256 MiB of logits.

    Example:
        scorer = HFScorer(model, tokenizer)
        losses = token_losses(scorer, scorer.encode(text))
    """

    def __init__(self, model: Any, tokenizer: Any = None, name: str | None = None, batch: int | None = None) -> None:
        if batch is not None and batch < 1:
            raise ValueError(f"[HFScorer] expected a batch of at least one text, found {batch}")
        self._model, self._tokenizer, self._batch = model, tokenizer, batch
        self.name = name or "hf"
        config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        self.vocab_size = int(config.vocab_size)
        self.context_length = int(getattr(config, "max_position_embeddings", None) or LONGEST)
        self.bos_id: int | None = getattr(tokenizer, "bos_token_id", None)
        self.add_bos = self.bos_id is not None and begins_with(tokenizer("a")["input_ids"], self.bos_id)

    def encode(self, text: str) -> list[int]:
        """As `Scorer.encode`."""
        if self._tokenizer is None:
            raise ValueError(f"[HFScorer] {self.name} has no tokenizer: expected token ids")
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def logits(self, ids: Sequence[int]) -> Floats:
        """As `Scorer.logits`. Raises ValueError: there are none, unknown ones, or more than the context has."""
        return self._forward([ids])[0]

    def losses(self, ids: Sequence[int]) -> Losses:
        """As `Scorer.losses`. Raises as `logits`, and ValueError where logits are no numbers."""
        return _losses(self.logits(ids), ids)

    def losses_of(self, texts: Iterable[Sequence[int]]) -> Iterator[Losses]:
        """As `Scorer.losses_of`, several texts in a pass."""
        rest = iter(texts)
        for first in rest:
            size = self._batch or max(1, LOGIT_BYTES // (4 * self.vocab_size * max(1, len(first))))
            group = [first, *islice(rest, size - 1)]
            for ids, rows in zip(group, self._forward(group), strict=True):
                yield _losses(rows, ids)

    def _forward(self, texts: Sequence[Sequence[int]]) -> list[Floats]:
        """Logits f32 `[tokens, vocab]` of each text."""
        for ids in texts:
            self._check(ids)
        longest = max(map(len, texts))
        padded = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, ids in zip(padded, texts, strict=True):
            row[: len(ids)] = torch.as_tensor(ids)
        training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                logits = self._model(input_ids=padded, use_cache=False).logits
        finally:
            self._model.train(training)
        found = logits.float().numpy()
        return [rows[: len(ids)] for rows, ids in zip(found, texts, strict=True)]

    def _check(self, ids: Sequence[int]) -> None:
        if not 1 <= len(ids) <= self.context_length:
            raise ValueError(f"[HFScorer] expected 1 to {self.context_length} tokens, found {len(ids)}")
        if not 0 <= min(ids) <= max(ids) < self.vocab_size:
            raise ValueError(
                f"[HFScorer] expected token ids of 0 to {self.vocab_size - 1}, found {min(ids)} to {max(ids)}"
            )


def open_scorer(path: str | Path, *, as_floats: bool = False, name: str | None = None, **options: Any) -> HFScorer:
    """A checkpoint of any supported format as a scorer.

    Args:
        path: a folder, a file, or the id of a repository on the hub.
        as_floats: turn low-bit layers into float32 ones, which has their weights and rounds no activation: the float
            model of a GGUF file, for instance.
        name: for tables; None: the path.
        options: of `tmac.from_pretrained`.

    Raises:
        FormatError, ValueError, OSError: as `from_pretrained`.
    """
    model = from_pretrained(path, **options)
    if as_floats and getattr(model, "is_quantized", False):
        model = model.dequantize()
    try:
        tokenizer = load_tokenizer(path, options.get("revision"))
    except OSError:
        tokenizer = None
    return HFScorer(model, tokenizer, name or str(path))


def _losses(logits: Floats, ids: Sequence[int]) -> Losses:
    following = np.asarray(ids[1:], np.int32)
    return negative(lambda: log_probabilities(logits[:-1], following))
