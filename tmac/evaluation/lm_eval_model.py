"""The native engine as a model of lm-eval (EleutherAI's evaluation harness): importing this registers "tmac"."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tmac._core import log_probabilities
from tmac.evaluation.scorer import EngineScorer
from tmac.progress import with_progress
from tmac.runtime.engine import Engine

_LM: Any = importlib.import_module("lm_eval.api.model").LM
_register: Callable[..., Any] = importlib.import_module("lm_eval.api.registry").register_model

GENERATED = 256  # tokens, where a task does not say how many
TOGETHER = 32  # prompts that are generated from at a time
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@_register("tmac")
class EngineLM(_LM):  # type: ignore[misc]
    """`tmac.Engine` behind lm-eval's interface.

    Args:
        pretrained: a checkpoint of any supported format.
        max_length: positions; None: the model's context.
        max_gen_toks: tokens of an answer where the task does not say how many.
        add_bos_token: begin every text with the model's token for that; None: as its tokenizer does.
        progress: bars; None: on a terminal.
        batch_size: is accepted and has no meaning, as `max_batch_size` and `device`.
        options: of `Engine.from_pretrained`: `num_threads`, `activation`, `cache_type`, `requantize`.

    Raises:
        FormatError, ValueError, OSError: as `Engine.from_pretrained`.
    """

    def __init__(
        self,
        pretrained: str,
        max_length: int | None = None,
        max_gen_toks: int = GENERATED,
        add_bos_token: bool | None = None,
        progress: bool | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self._path, self._progress, self.max_gen_toks = str(pretrained), progress, int(max_gen_toks)
        self.engine = Engine.from_pretrained(pretrained, context_length=max_length, **options)
        self._scorer = EngineScorer(self.engine, self._path)
        self.max_length = self.engine.context_length
        if add_bos_token and self._scorer.bos_id is None:
            raise ValueError(f"[lm_eval] {pretrained} has no token for the beginning of a text")
        self._add_bos = self._scorer.add_bos if add_bos_token is None else add_bos_token

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before: the beginning's token, or the end of another text."""
        if self._scorer.bos_id is not None:
            return self._scorer.bos_id
        if not self.engine.eos_ids:
            raise ValueError(f"[lm_eval] {self._path} has no token for the beginning or the end of a text")
        return min(self.engine.eos_ids)

    def tok_encode(self, text: str, begin: bool = True) -> list[int]:
        """Token ids of a text; `begin`: with the token for that where the model wants it and the text has it not."""
        ids, bos_id = self._scorer.encode(text), self._scorer.bos_id
        if begin and self._add_bos and bos_id is not None and ids[:1] != [bos_id]:
            return [bos_id, *ids]
        return ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy decoding would write it) of each request's continuation of its context."""
        texts = [self._encode_pair(*request.args) for request in requests]
        found = self._score(texts, "loglikelihood", disable_tqdm)
        for request, result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each request's text: each token is predicted once, from as much as the context holds."""
        windows, owners = [], []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], begin=False)
            for window in rolling_windows(ids, self.prefix_token_id, self.max_length):
                windows.append(window)
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (value, _) in zip(owners, self._score(windows, "loglikelihood_rolling", disable_tqdm), strict=True):
            totals[index] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each request's context, up to a text of `until`."""
        found = [""] * len(requests)
        for indices in self._bar(list(_batches(requests)), "generate_until", disable_tqdm):
            until, options = self._generation_options(requests[indices[0]].args[1])
            room = self.max_length - options["max_new_tokens"]
            if room < 1:
                raise ValueError(f"[lm_eval] {options['max_new_tokens']} tokens do not fit into {self.max_length}")
            prompts = [self.tok_encode(requests[index].args[0])[-room:] or [self.prefix_token_id] for index in indices]
            for index, answer in zip(indices, self.engine.generate(prompts, stop=until, **options), strict=True):
                found[index] = cut(answer.text, until)
                self.cache_hook.add_partial("generate_until", requests[index].args, found[index])
        return found

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the model was trained on them."""
        return self.engine.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's source where it is used."""
        return (self.engine.chat_template() or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Part of the names of lm-eval's caches."""
        return self._path.replace("/", "__")

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it, encoded together; its last spaces belong to what follows."""
        bare = context.rstrip()
        if not bare:
            ids, prefix = self.tok_encode(context + continuation, begin=False), self.prefix_token_id
            return [prefix], ids[1:] if ids[:1] == [prefix] else ids
        whole, size = self.tok_encode(context + continuation), len(self.tok_encode(bare))
        return whole[:size], whole[size:]

    def _score(
        self, texts: Sequence[tuple[list[int], list[int]]], title: str, disable_tqdm: bool
    ) -> list[tuple[float, bool]]:
        """Scores of (context, continuation). Texts that differ in their last token alone are read once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, (context, continuation) in enumerate(texts):
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"[lm_eval] expected 1 to {self.max_length} tokens to score, found {len(continuation)}"
                )
            groups.setdefault(tuple((context + continuation)[-self.max_length - 1 : -1]), []).append(index)
        found: list[tuple[float, bool]] = [(0.0, False)] * len(texts)
        for read, indices in self._bar(list(groups.items()), title, disable_tqdm):
            logits = self._scorer.logits(read)
            for index in indices:
                wanted = np.array(texts[index][1], np.int32)
                rows = logits[-len(wanted) :]
                total = float(log_probabilities(rows, wanted).sum(dtype=np.float64))
                found[index] = total, bool((rows.argmax(1) == wanted).all())
        return found

    def _generation_options(self, given: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
        """(texts that end an answer, options of `Engine.generate`)."""
        until = given.get("until") or []
        options = {name: given[name] for name in SAMPLING if given.get(name) is not None}
        if not given.get("do_sample", False):
            options["temperature"] = 0.0
        options["max_new_tokens"] = int(given.get("max_gen_toks") or self.max_gen_toks)
        return tuple([until] if isinstance(until, str) else until), options

    def _bar(self, items: list[Any], title: str, disable_tqdm: bool) -> Iterator[Any]:
        return with_progress(items, title, False if disable_tqdm else self._progress)


def rolling_windows(ids: list[int], prefix: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, tokens to predict) that together predict every token once, from inputs of at most `length` tokens.

    The first window begins with `prefix` and predicts all that it holds; each later one ends where it must and reaches
    as far back as the model can see.
    """
    done = 0
    text = [prefix, *ids]
    while done < len(ids):
        end = min(done + length, len(ids))
        begin = max(0, end - length)
        yield text[begin : done + 1], ids[done:end]
        done = end


def cut(text: str, until: Iterable[str]) -> str:
    """A text up to the first of what ends it."""
    return min((text.partition(end)[0] for end in until if end), key=len, default=text)


def _batches(requests: Sequence[Any]) -> Iterator[list[int]]:
    """Indices of requests that ask for the same, `TOGETHER` of them at most."""
    groups: dict[str, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.args[1].items())), []).append(index)
    for indices in groups.values():
        for at in range(0, len(indices), TOGETHER):
            yield indices[at : at + TOGETHER]
