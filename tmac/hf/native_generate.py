"""`native_generate`: the loop of Hugging Face's `generate` around a native decoder instead of a forward pass."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerationMixin

from tmac.hf.native_attachment import Attachment, current_attachment
from tmac.hf.native_cache import NativeCache
from tmac.hf.native_draft import NO_LIMIT, Drafting, GuessedText, generate_guessed
from tmac.runtime.native import Floats

CHUNK = 256
"""Prompt tokens in one pass, where the generation configuration does not say."""

# What the model's forward pass would get, and the loop has no use for.
_IGNORED = ("use_cache", "logits_to_keep", "attention_mask", "position_ids", "past_key_values")
_LAST_ROW = np.zeros(1, np.int32)


def native_generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    synced_gpus: bool = False,
    streamer: Any = None,
    speculative: bool = True,
    **model_kwargs: Any,
) -> Any:
    """Greedy decoding and sampling for `model.generate(ids, custom_generate=tmac.native_generate, ...)`.

    Logits come from the native decoder of `tmac.attach`, which is called where that has not been done; processors,
    stopping criteria, streamers, and torch's random numbers are used as transformers' own loop uses them: where the
    logits are its logits (`activation="float"`), the same seed draws the same tokens. A sequence of a padded batch is
    decoded without its padding. Arguments are those that `generate` gives; `speculative=False` does without the draft
    of `tmac.attach`, which guesses for a text that is generated alone and changes nothing of it.

    Returns:
        ids `[batch, columns]`, or `GenerateDecoderOnlyOutput` with `return_dict_in_generate=True`.

    Raises:
        ValueError: the model cannot be attached, or beam search, assistants, `inputs_embeds`, pictures, attentions,
            hidden states or another kind of cache were asked for.
    """
    called_with = _arguments_of_generate()
    streamer = called_with.get("streamer") if streamer is None else streamer
    _check_mode(generation_config, called_with.get("assistant_model"), synced_gpus or called_with.get("synced_gpus"))
    _check_arguments(model_kwargs)
    attachment = current_attachment(model)
    cache, is_kept = _cache(model_kwargs, generation_config)
    before, ids, mask = _columns(input_ids, model_kwargs, generation_config, cache, attachment)
    try:
        cache.open(attachment, len(ids))
        pending = [
            cache.keep_common(row, each[keep].tolist()) for row, (each, keep) in enumerate(zip(ids, mask, strict=True))
        ]
        loop = _Loop(attachment, cache, generation_config, logits_processor, stopping_criteria, streamer)
        loop.drafting = attachment.drafting if speculative and len(ids) == 1 else None
        result = loop.run(input_ids, pending)
        cache.ids = torch.cat([before, loop.ids], -1)[:, :-1]
    finally:
        if not is_kept:
            cache.close()
    if not generation_config.return_dict_in_generate:
        return result
    return GenerateDecoderOnlyOutput(
        sequences=result,  # type: ignore[arg-type]
        scores=loop.scores,
        logits=loop.logits,
        past_key_values=cache if is_kept else None,
    )


class _Loop:
    """One call's state. `ids` `[batch, columns]` grows by a column a step."""

    def __init__(
        self, attachment: Attachment, cache: NativeCache, config: Any, processors: Any, criteria: Any, streamer: Any
    ) -> None:
        self.attachment, self.cache = attachment, cache
        self.config, self.processors, self.criteria, self.streamer = config, processors, criteria, streamer
        wanted = config.return_dict_in_generate
        self.scores: Any = () if wanted and config.output_scores else None
        self.logits: Any = () if wanted and config.output_logits else None
        self.drafting: Drafting | None = None
        self.has_end = any(hasattr(each, "eos_token_id") for each in criteria)

    def run(self, input_ids: Tensor, pending: list[list[int]]) -> Tensor:
        self.ids = input_ids
        self.unfinished = torch.ones(len(input_ids), dtype=torch.long)
        self.cache.speculation = None
        goes_on = self._take(self._read_prompt(pending))
        if goes_on and self.drafting is not None and self.drafting.busy.acquire(blocking=False):
            try:
                self._guess(self.drafting)
                goes_on = False
            finally:
                self.drafting.busy.release()
        while goes_on:
            goes_on = self._take(self._step())
        if self.streamer is not None:
            self.streamer.end()
        return self.ids

    def _take(self, logits: Tensor) -> bool:
        """A column more, from the logits of the last one; whether any sequence goes on."""
        tokens = self._choose(logits)
        if self.has_end:
            tokens = tokens * self.unfinished + self.config._pad_token_tensor * (1 - self.unfinished)
        self.ids = torch.cat([self.ids, tokens[:, None]], -1)
        self.unfinished = self.unfinished & ~self.criteria(self.ids, self.scores)
        if self.streamer is not None:
            self.streamer.put(tokens)
        return bool(self.unfinished.any())

    def _guess(self, drafting: Drafting) -> None:
        """Goes on with the only sequence until it ends."""

        def take(logits: Tensor) -> tuple[int, bool]:
            goes_on = self._take(logits)
            return int(self.ids[0, -1]), goes_on

        def plain() -> Floats:
            found: Floats = self._step()[0].numpy()
            return found

        kept, limit = self.cache.tokens[0], self.config.max_length
        room = NO_LIMIT if limit is None else limit - self.ids.shape[1]
        text = GuessedText([*kept, int(self.ids[0, -1])], self.cache.sequences[0], room, take)
        try:
            generate_guessed(text, drafting, self.attachment, kept, plain)
        finally:
            self.cache.speculation = text.speculation

    def _choose(self, logits: Tensor) -> Tensor:
        scores = self.processors(self.ids, logits)
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        if not self.config.do_sample:
            return torch.argmax(scores, -1)
        return torch.multinomial(torch.nn.functional.softmax(scores, -1), 1).squeeze(1)

    def _read_prompt(self, pending: list[list[int]]) -> Tensor:
        """Logits after the last token of every sequence; the prompts are read in passes of a limited size."""
        limit = self.config.prefill_chunk_size or CHUNK
        lengths = [len(here) + len(rest) for here, rest in zip(self.cache.tokens, pending, strict=True)]
        logits = torch.empty(len(pending), self.attachment.model.vocab_size)
        while any(pending):
            chunks: dict[int, list[int]] = {}
            for row, rest in enumerate(pending):
                room = limit - sum(map(len, chunks.values()))
                if rest and room > 0:
                    chunks[row], pending[row] = rest[:room], rest[room:]
            wanted = {row: [] if pending[row] else [len(chunk) - 1] for row, chunk in chunks.items()}
            found = self.attachment.forward(
                [self.cache.sequences[row] for row in chunks],
                [np.array(chunk, np.int32) for chunk in chunks.values()],
                "prompt",
                [np.array(rows, np.int32) for rows in wanted.values()],
                [lengths[row] for row in chunks],
            )
            for row, chunk in chunks.items():
                self.cache.tokens[row] += chunk
            logits[[row for row in chunks if wanted[row]]] = torch.from_numpy(found)
        return logits

    def _step(self) -> Tensor:
        """Logits after the last token of every sequence, zeros for those that have ended and that nobody looks at."""
        batch = len(self.ids)
        is_seen = self.scores is not None or self.logits is not None
        rows = [row for row, goes_on in enumerate(self.unfinished.tolist()) if goes_on or is_seen]
        new = self.ids[:, -1].tolist()
        found = self.attachment.forward(
            [self.cache.sequences[row] for row in rows],
            [np.array([new[row]], np.int32) for row in rows],
            "decode",
            [_LAST_ROW] * len(rows),
            [len(self.cache.tokens[row]) + 1 for row in rows],
        )
        for row in rows:
            self.cache.tokens[row].append(new[row])
        logits = torch.from_numpy(found)
        if len(rows) == batch:
            return logits
        return torch.zeros(batch, logits.shape[1]).index_copy_(0, torch.tensor(rows), logits)


def _arguments_of_generate() -> dict[str, Any]:
    """What `generate` was called with: it gives a function of one's own neither streamer nor assistant (5.23)."""
    generate = getattr(GenerationMixin.generate, "__wrapped__", GenerationMixin.generate)
    frame = sys._getframe(2)
    return dict(frame.f_locals) if frame.f_code is generate.__code__ else {}


def _check_mode(config: Any, assistant: Any, synced: Any) -> None:
    mode = config.get_generation_mode(assistant).value
    if mode not in ("greedy_search", "sample"):
        raise ValueError(
            f"[native_generate] {mode.replace('_', ' ')} is not supported, but greedy search and sampling are: "
            "generate without custom_generate"
        )
    for key in ("output_attentions", "output_hidden_states"):
        if config.return_dict_in_generate and getattr(config, key):
            raise ValueError(f"[native_generate] {key} is not supported: the native decoder keeps no such tensors")
    if synced:
        raise ValueError("[native_generate] synced_gpus is not supported: tmac runs on one machine's CPU")


def _check_arguments(model_kwargs: dict[str, Any]) -> None:
    unknown = [key for key, value in model_kwargs.items() if key not in _IGNORED and not _is_nothing(value)]
    if unknown:
        raise ValueError(
            f"[native_generate] {', '.join(unknown)}: the native decoder takes input_ids and attention_mask alone"
        )


def _is_nothing(value: Any) -> bool:
    """Also of the outputs of encoders that there was no picture for."""
    return value is None or (isinstance(value, dict) and all(map(_is_nothing, value.values())))


def _cache(model_kwargs: dict[str, Any], config: Any) -> tuple[NativeCache, bool]:
    """The cache to use, and whether somebody has it after the call."""
    given = model_kwargs.get("past_key_values")
    if isinstance(given, NativeCache):
        return given, True
    if given is not None and getattr(given, "_is_user_defined", given.get_seq_length() > 0):
        raise ValueError(
            f"[native_generate] past_key_values is a {type(given).__name__}, but expected a tmac.hf.NativeCache: the "
            "native decoder has keys and values of its own"
        )
    return NativeCache(), bool(config.return_dict_in_generate and config.use_cache)


def _columns(
    input_ids: Tensor, model_kwargs: dict[str, Any], config: Any, cache: NativeCache, attachment: Attachment
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of the batch that were left out because the cache has them, all columns, and which are no padding.

    Raises:
        ValueError: there is an id that the model does not have, a mask or positions that the decoder cannot follow, or
            a sequence without tokens.
    """
    if input_ids.device.type != "cpu":
        raise ValueError(f"[native_generate] input_ids are on {input_ids.device}, but tmac runs on the CPU")
    mask = model_kwargs.get("attention_mask")
    total = getattr(config, "_mask_length", input_ids.shape[1]) if mask is None else mask.shape[1]
    missing = total - input_ids.shape[1]
    if missing < 0 or missing > cache.get_seq_length():
        raise ValueError(
            f"[native_generate] the attention mask has {total} columns, but there are {input_ids.shape[1]} ids after "
            f"{cache.get_seq_length()} in past_key_values"
        )
    before = input_ids[:, :0] if cache.ids is None else cache.ids[:, :missing]
    if len(before) != len(input_ids):
        raise ValueError(
            f"[native_generate] past_key_values hold {len(before)} sequences, but {len(input_ids)} are to be generated"
        )
    ids = torch.cat([before, input_ids], -1)
    keep = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    vocab = attachment.model.vocab_size
    if ids.numel() == 0 or not keep.any(-1).all():
        raise ValueError("[native_generate] a sequence is empty: at least one token is needed to go on from")
    if bool((ids[keep] < 0).any()) or bool((ids[keep] >= vocab).any()):
        raise ValueError(f"[native_generate] ids are {int(ids.min())} to {int(ids.max())}, but the model has {vocab}")
    if not keep[:, -1].all():
        raise ValueError("[native_generate] padding must be on the left: set tokenizer.padding_side='left'")
    if attachment.has_windows and bool((keep[:, 1:] < keep[:, :-1]).any()):
        raise ValueError(
            "[native_generate] the attention mask leaves out ids between others, which the sliding windows of this "
            "model count; padding on the left is possible (where there is none, give a mask of ones)"
        )
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        expected = (keep.long().cumsum(-1) - 1).masked_fill(~keep, 0)
        if positions.shape[-1] != total or not bool((positions == expected).all()):
            raise ValueError("[native_generate] position_ids of one's own are not supported: they count the tokens")
    return before, ids, keep
