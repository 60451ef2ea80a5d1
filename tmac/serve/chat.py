"""/v1/chat/completions: answers to messages."""

from __future__ import annotations

import time
import uuid
from typing import Any

from tmac.serve.chat_request import ChatRequest
from tmac.serve.errors import invalid, unsupported
from tmac.serve.logprobs import chat_logprobs, shown_tokens
from tmac.serve.replies import Sender
from tmac.serve.service import Service
from tmac.serve.texts import Job, Texts
from tmac.serve.tool_calls import ToolCall, ToolCallParser, knows_format


class Answer:
    """One answer as it grows: changes to its message, the finish reason at the end."""

    def __init__(self, service: Service, with_tools: bool, with_logprobs: bool) -> None:
        self._texts, self._with_logprobs = service.token_texts, with_logprobs
        self._parser = ToolCallParser() if with_tools else None
        self._calls = 0

    def add(self, chunk: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, str | None]:
        """A chunk's changes, log-probabilities and finish reason."""
        pieces: list[str | ToolCall] = [chunk.text] if chunk.text else []
        if self._parser is not None:
            pieces = self._parser.feed(chunk.text)
            if chunk.finish_reason is not None:
                pieces += self._parser.finish()
        logprobs = chat_logprobs(shown_tokens(chunk, self._texts), self._texts) if self._with_logprobs else None
        deltas = [self._delta(piece) for piece in pieces]
        reason: str | None = chunk.finish_reason
        return deltas, logprobs, "tool_calls" if reason == "stop" and self._calls else reason

    def _delta(self, piece: str | ToolCall) -> dict[str, Any]:
        if isinstance(piece, str):
            return {"content": piece}
        self._calls += 1
        return {"tool_calls": [{"index": self._calls - 1, **piece.to_dict()}]}


class ChatCompletion:
    """The answers to one request."""

    def __init__(self, service: Service, request: ChatRequest) -> None:
        self._service, self._request, self._generation = service, request, request.generation
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if request.generation.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.settings.model_name,
        }
        with_tools = request.tools is not None and knows_format(service.engine.chat_template(True))
        self._answers = [Answer(service, with_tools, request.logprobs is not None) for _ in range(request.generation.n)]
        self._prompt_tokens = self._generated = 0

    async def send(self, sender: Sender) -> None:
        """Generates and sends them."""
        prompt = await self._prompt()
        self._prompt_tokens = len(prompt)
        generation = self._generation
        limit = self._service.token_limit(generation.max_tokens, len(prompt))
        options = (generation.options_of(choice, limit) for choice in range(generation.n))
        jobs = [Job(prompt, {**each, "continues": False}) for each in options]
        async with Texts(self._service, jobs) as texts:
            await texts.started()
            await (self._stream(sender, texts) if generation.stream else self._collect(sender, texts))

    async def _prompt(self) -> list[int]:
        engine, request = self._service.engine, self._request
        if engine.chat_template() is None:
            raise unsupported("messages", "the model has no chat template: use /v1/completions")
        try:
            text = await self._service.in_thread(
                lambda: engine.apply_chat_template(request.messages, tools=request.tools, **request.variables)
            )
        except Exception as error:
            if not _is_template_error(error):
                raise
            raise invalid("messages", f"the model's chat template refuses them: {error}") from None
        return await self._service.encode(text, "messages", add_special_tokens=False)

    async def _stream(self, sender: Sender, texts: Texts) -> None:
        await sender.start_events()
        for index in range(len(self._answers)):
            await self._event(sender, index, {"role": "assistant", "content": ""}, None, None)
        async for index, chunk in texts:
            if chunk is None:
                await sender.ping()
                continue
            self._generated += len(chunk.token_ids)
            deltas, logprobs, reason = self._answers[index].add(chunk)
            for delta in deltas or ([{}] if logprobs else []):
                await self._event(sender, index, delta, logprobs, None)
                logprobs = None
            if reason is not None:
                await self._event(sender, index, {}, None, reason)
        if self._generation.include_usage:
            await sender.event({**self._head, "choices": [], "usage": self._usage()})
        await sender.end_events()

    async def _event(
        self,
        sender: Sender,
        index: int,
        delta: dict[str, Any],
        logprobs: list[dict[str, Any]] | None,
        reason: str | None,
    ) -> None:
        written = None if logprobs is None else {"content": logprobs, "refusal": None}
        choice = {"index": index, "delta": delta, "logprobs": written, "finish_reason": reason}
        usage = {"usage": None} if self._generation.include_usage else {}
        await sender.event({**self._head, "choices": [choice], **usage})

    async def _collect(self, sender: Sender, texts: Texts) -> None:
        choices = [_Collected(index, self._request.logprobs is not None) for index in range(len(self._answers))]
        async for index, chunk in texts:
            if chunk is not None:
                self._generated += len(chunk.token_ids)
                choices[index].add(*self._answers[index].add(chunk))
        written = [choice.to_dict() for choice in choices]
        await sender.answer(200, {**self._head, "choices": written, "usage": self._usage()})

    def _usage(self) -> dict[str, Any]:
        return dict(self._service.usage(self._prompt_tokens, self._generated))


class _Collected:
    """All changes of an answer as one message."""

    def __init__(self, index: int, with_logprobs: bool) -> None:
        self._index = index
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] | None = [] if with_logprobs else None
        self._reason: str | None = None

    def add(self, deltas: list[dict[str, Any]], logprobs: list[dict[str, Any]] | None, reason: str | None) -> None:
        for delta in deltas:
            if "content" in delta:
                self._texts.append(delta["content"])
            for call in delta.get("tool_calls", ()):
                self._calls.append({name: value for name, value in call.items() if name != "index"})
        if self._logprobs is not None:
            self._logprobs += logprobs or ()
        self._reason = reason or self._reason

    def to_dict(self) -> dict[str, Any]:
        text = "".join(self._texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._calls:
            message["content"] = text or None
            message["tool_calls"] = self._calls
        logprobs = None if self._logprobs is None else {"content": self._logprobs, "refusal": None}
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._reason}


def _is_template_error(error: Exception) -> bool:
    """Whether it is the messages' fault: templates raise errors of their own, and Python's where a field is missing."""
    return isinstance(error, (ValueError, TypeError)) or type(error).__module__.partition(".")[0] == "jinja2"
