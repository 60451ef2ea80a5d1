"""/v1/completions: texts that go on from prompts."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tmac.serve.completion_request import CompletionRequest
from tmac.serve.logprobs import CompletionLogprobs, shown_tokens
from tmac.serve.replies import Sender
from tmac.serve.service import Service
from tmac.serve.texts import Job, Texts, score


@dataclass(frozen=True)
class FirstToken:
    """A prompt's first token, which nothing predicts."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Choice:
    """One text as it grows."""

    def __init__(self, service: Service, index: int, top: int | None) -> None:
        self._texts, self._index = service.token_texts, index
        self._logprobs = None if top is None else CompletionLogprobs(service.token_texts, top)

    def piece(self, text: str, logprobs: Sequence[Any], finish_reason: str | None) -> dict[str, Any]:
        """The next part of `choices`."""
        written = None if self._logprobs is None else self._logprobs.write(logprobs)
        return {"text": text, "index": self._index, "logprobs": written, "finish_reason": finish_reason}

    def of_chunk(self, chunk: Any) -> dict[str, Any]:
        """The part that a chunk of the engine's is."""
        return self.piece(chunk.text, shown_tokens(chunk, self._texts), chunk.finish_reason)


class Completion:
    """The answer to one request."""

    def __init__(self, service: Service, request: CompletionRequest) -> None:
        self._service, self._request, self._generation = service, request, request.generation
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.settings.model_name,
        }
        self._choices: list[Choice] = []
        self._prompt_tokens = self._generated = 0

    async def send(self, sender: Sender) -> None:
        """Generates and sends it."""
        prompts = [await self._ids(prompt) for prompt in self._request.prompts]
        self._prompt_tokens = sum(map(len, prompts))
        count = len(prompts) * self._generation.n
        self._choices = [Choice(self._service, index, self._request.logprobs) for index in range(count)]
        echoes = [await self._echo(ids) for ids in prompts] if self._request.echo else []
        if self._generation.max_tokens == 0:
            await self._send_echoes(sender, echoes)
            return
        async with Texts(self._service, [job for ids in prompts for job in self._jobs(ids)]) as texts:
            await texts.started()
            if self._generation.stream:
                await self._stream(sender, texts, echoes)
            else:
                await self._collect(sender, texts, echoes)

    async def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            return await self._service.encode(prompt, "prompt", add_special_tokens=True)
        return self._service.checked_length(prompt, "prompt")

    def _jobs(self, ids: list[int]) -> list[Job]:
        generation = self._generation
        limit = self._service.token_limit(generation.max_tokens, len(ids))
        return [Job(ids, generation.options_of(choice, limit)) for choice in range(generation.n)]

    async def _echo(self, ids: list[int]) -> tuple[str, list[Any]]:
        """A prompt as text, and its tokens' log-probabilities."""
        engine, top = self._service.engine, self._request.logprobs
        text = await self._service.in_thread(lambda: engine.tokenizer.decode(ids, skip_special_tokens=True))
        if top is None:
            return text, []
        rest = await score(self._service, ids, top) if len(ids) > 1 else []
        return text, [FirstToken(ids[0]), *rest]

    def _pieces(self, echoes: list[tuple[str, list[Any]]], finish_reason: str | None) -> list[dict[str, Any]]:
        """The prompts as parts of `choices`."""
        n = self._generation.n
        return [
            choice.piece(*echoes[index // n], finish_reason)
            for index, choice in enumerate(self._choices[: len(echoes) * n])
        ]

    async def _send_echoes(self, sender: Sender, echoes: list[tuple[str, list[Any]]]) -> None:
        pieces = self._pieces(echoes, "length")
        if self._generation.stream:
            await sender.start_events()
            for piece in pieces:
                await self._event(sender, [piece])
            await self._end(sender)
        else:
            await sender.answer(200, {**self._head, "choices": pieces, "usage": self._usage()})

    async def _stream(self, sender: Sender, texts: Texts, echoes: list[tuple[str, list[Any]]]) -> None:
        await sender.start_events()
        for piece in self._pieces(echoes, None):
            await self._event(sender, [piece])
        async for index, chunk in texts:
            if chunk is None:
                await sender.ping()
                continue
            self._generated += len(chunk.token_ids)
            await self._event(sender, [self._choices[index].of_chunk(chunk)])
        await self._end(sender)

    async def _event(self, sender: Sender, choices: list[dict[str, Any]]) -> None:
        usage = {"usage": None} if self._generation.include_usage else {}
        await sender.event({**self._head, "choices": choices, **usage})

    async def _end(self, sender: Sender) -> None:
        if self._generation.include_usage:
            await sender.event({**self._head, "choices": [], "usage": self._usage()})
        await sender.end_events()

    async def _collect(self, sender: Sender, texts: Texts, echoes: list[tuple[str, list[Any]]]) -> None:
        parts: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        for place, piece in enumerate(self._pieces(echoes, None)):
            parts[place].append(piece)
        async for index, chunk in texts:
            if chunk is not None:
                self._generated += len(chunk.token_ids)
                parts[index].append(self._choices[index].of_chunk(chunk))
        await sender.answer(200, {**self._head, "choices": list(map(_joined, parts)), "usage": self._usage()})

    def _usage(self) -> dict[str, Any]:
        return dict(self._service.usage(self._prompt_tokens, self._generated))


def _joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Parts of one choice as one."""
    last, logprobs = pieces[-1], pieces[-1]["logprobs"]
    if logprobs is not None:
        logprobs = {
            name: None if logprobs[name] is None else [item for piece in pieces for item in piece["logprobs"][name]]
            for name in logprobs
        }
    return {**last, "text": "".join(piece["text"] for piece in pieces), "logprobs": logprobs}
