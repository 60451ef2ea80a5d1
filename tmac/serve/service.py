"""What all endpoints share: the engine, and everything about it that would hold the event loop up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from tmac.serve.errors import ApiError, invalid, too_long
from tmac.serve.metrics import Metrics
from tmac.serve.settings import Settings
from tmac.serve.slots import Slots
from tmac.serve.token_texts import TokenTexts

T = TypeVar("T")
LAST_SECONDS = 2.0


class EngineRequest(Protocol):
    """A text that is being generated: an iterator of `tmac.runtime.generate.Chunk`."""

    def __iter__(self) -> Any: ...
    def cancel(self) -> None: ...


class ServedEngine(Protocol):
    """What the server needs of `tmac.Engine`."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def context_length(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    def submit(self, prompt: list[int], *, continues: bool = True, **options: Any) -> EngineRequest: ...
    def chat_template(self, with_tools: bool = False, /) -> str | None: ...
    def apply_chat_template(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        tools: list[Any] | None = None,
        **variables: Any,
    ) -> str: ...
    def token_logprobs(self, ids: list[int], top: int, cancelled: Callable[[], bool]) -> Sequence[Any]: ...


class Service:
    """An engine and what is counted and limited about it.

    Args:
        engine: generates the texts.
        settings: names and limits.
    """

    def __init__(self, engine: ServedEngine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.created = int(time.time())
        self.slots = Slots(settings.max_requests, settings.max_queued)
        self.metrics = Metrics(self.slots)
        self.token_texts = TokenTexts(engine.tokenizer)
        self.generating = ThreadPoolExecutor(settings.max_requests, thread_name_prefix="tmac-serve-text")
        self._preparing = ThreadPoolExecutor(2, thread_name_prefix="tmac-serve-prompt")
        self.runs: set[asyncio.Task[Any]] = set()  # held here: the event loop alone would let them go
        self.replies: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Lets cancelled answers say so and the engine's texts end, then the threads."""
        for tasks in (self.replies, self.runs):
            if tasks:
                await asyncio.wait(tasks, timeout=LAST_SECONDS)
        self.generating.shutdown(wait=False, cancel_futures=True)
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Something short that would hold the event loop up."""
        return await asyncio.get_running_loop().run_in_executor(self._preparing, work)

    async def encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        """The tokens of a prompt.

        Raises:
            ApiError: there are none, or too many for the context.
        """
        tokenizer = self.engine.tokenizer
        ids = await self.in_thread(lambda: tokenizer.encode(text, add_special_tokens=add_special_tokens))
        return self.checked_length(list(ids), param)

    def checked_length(self, ids: list[int], param: str) -> list[int]:
        """A prompt with room for at least one token after it."""
        if not ids:
            raise invalid(param, "expected at least one token, found none")
        if len(ids) >= self.engine.context_length:
            raise too_long(param, len(ids), self.engine.context_length)
        return ids

    def check_model(self, name: str) -> None:
        """Raises ApiError if it is not the one that is served."""
        if name != self.settings.model_name:
            message = f"the model {name[:200]!r} does not exist here; this server has {self.settings.model_name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def token_limit(self, asked: int | None, prompt_tokens: int) -> int:
        """How many tokens a text may have: what was asked for, as far as the context goes."""
        room = self.engine.context_length - prompt_tokens
        return min(room, asked or room, self.settings.max_tokens or room)

    def usage(self, prompt_tokens: int, generated: int) -> Mapping[str, int]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated,
        }
