"""`tmac.Engine`: text from a model, without torch."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, overload

from tmac.runtime.arguments import check_loading, integer, shown
from tmac.runtime.constrain import Grammars
from tmac.runtime.detokenize import byte_tokens
from tmac.runtime.evaluate import Evaluator, rope_key
from tmac.runtime.generate import Chunk, Generation, Options, TokenLogprob, checked_ids, is_one_prompt
from tmac.runtime.native import Decoder, Floats, Tokenizer, needed
from tmac.runtime.passes import Passes
from tmac.runtime.request import Outbox, Request, Stream, weak_callbacks
from tmac.runtime.scheduler import Scheduler
from tmac.runtime.speculation.controller import Controller
from tmac.runtime.speculation.drafts import Draft
from tmac.runtime.speculation.speculator import make_speculator
from tmac.runtime.task import Model, Task

KEPT_POSITIONS = 4096


class Engine:
    """A model that generates text.

    `from_pretrained` makes one. It may be used from many threads; all texts that are asked for at a time share the
    passes through the model, and none depends on the others. As a context manager it is closed at the end.

    Example:
        with tmac.Engine.from_pretrained("folder") as engine:
            print(engine.generate("Once upon a time", max_new_tokens=32).text)

    Args:
        decoder: a `_core.Decoder`, or what behaves like one.
        tokenizer: of the model.
        model_config: what the model was built with (`vocab_size`, `windows`, `rope`, ...).
        config: the checkpoint's configuration.
        eos_ids: tokens that end a text.
        context_length: positions of a text.
        chat_template: renders messages, or None.
        cache_type: of the decoder, part of what a saved prompt is recognized by.
        chunk_size: prompt rows in a pass.
        num_threads: of this engine's passes; None: those of the process.
        max_batch: texts that are generated at a time; further ones wait.
        max_queue: requests of `submit` that may wait.
        kept_positions: tokens of evaluated prompts that stay in the cache.
        draft: guesses tokens of a text that is generated alone; the text is the same without it.
        controller: what was measured of the passes and the draft's.
        streamed: a `StreamedModel`, where the weights do not all stay in memory.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        model_config: Mapping[str, Any],
        config: Mapping[str, Any] | None = None,
        eos_ids: Sequence[int] = (),
        context_length: int = 2048,
        chat_template: Any = None,
        cache_type: str = "f16",
        chunk_size: int = 256,
        num_threads: int | None = None,
        max_batch: int = 64,
        max_queue: int = 1024,
        kept_positions: int | None = None,
        draft: Draft | None = None,
        controller: Controller | None = None,
        streamed: Any = None,
    ) -> None:
        self.tokenizer, self.config = tokenizer, dict(config or {})
        self.context_length = integer("context_length", context_length, 1)
        self.vocab_size = int(model_config["vocab_size"])
        self.eos_ids = frozenset(int(token) for token in eos_ids)
        self._chat_template = chat_template
        kept = min(self.context_length, KEPT_POSITIONS) if kept_positions is None else kept_positions
        threads = 0 if num_threads is None else integer("num_threads", num_threads, 1)
        self._passes = Passes(
            decoder,
            chunk_size=integer("chunk_size", chunk_size, 1),
            max_batch=integer("max_batch", max_batch, 1),
            kept_positions=integer("kept_positions", kept, 0),
            rope_key=rope_key(model_config),
            windowed=any(model_config.get("windows") or ()),
            num_threads=threads,
            speculator=make_speculator(
                decoder,
                draft,
                controller,
                self.vocab_size,
                threads,
                streamed and streamed.io_since(),
                pipeline=streamed is not None and streamed.streams,
            ),
        )
        self._scheduler = Scheduler(self._passes, integer("max_queue", max_queue, 0))
        weakref.finalize(self, self._scheduler.abandon)
        self._streamed = streamed
        rows = None if streamed is None else streamed.evaluated_rows
        self._evaluator = Evaluator(self._passes, self._scheduler, model_config, cache_type, rows)
        self._grammars = Grammars(tokenizer, self.vocab_size, self.eos_ids)
        self._model = Model(self.vocab_size, self.context_length, self.eos_ids, tokenizer, byte_tokens(tokenizer))

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        activation: str | None = None,
        cache_type: str | None = None,
        context_length: int | None = None,
        head_bits: int | None = None,
        embedding_bits: int | None = None,
        num_threads: int | None = None,
        requantize: Sequence[str] = (),
        revision: str | None = None,
        progress: bool | None = None,
        max_positions: int | None = None,
        memory_limit: int | str | None = None,
        chunk_size: int = 256,
        max_batch: int | None = None,
        max_queue: int = 1024,
        kept_positions: int | None = None,
        draft: str | None = None,
    ) -> Engine:
        """Loads a checkpoint of any supported format: a folder, a file or a Hub id.

        Args:
            path: where the checkpoint is.
            activation: overrides how activations are rounded; "float" is the exact mode.
            cache_type: of keys and values: "f32" (the default with `activation="float"`), "f16" (else) or "int8".
            context_length: positions of a text, at most the model's.
            head_bits: quantizes the head if the checkpoint has it as floats.
            embedding_bits: the same for the embedding.
            num_threads: of this engine; None: those of the process.
            requantize: types of a GGUF file that may be rounded.
            revision: of a Hub id.
            progress: a bar; None: if it takes long.
            max_positions: positions of all texts together that the cache may hold; None: no limit, or with a
                `memory_limit` the context's, at most 4096.
            memory_limit: of the whole process: bytes, or "700M", "1.5G". Layers for which it has no room are read
                from a packed cache file in every pass (docs/packed_file.md).
            chunk_size: prompt rows in a pass: running texts wait for no more.
            max_batch: texts that are generated at a time, further ones wait; None: 64, or 8 with a `memory_limit`.
            max_queue: requests of `submit` that may wait.
            kept_positions: tokens of evaluated prompts that stay in the cache for later ones that begin alike.
            draft: guesses tokens, so that a pass may give several (docs/speculation.md): "ngram", "planes:K",
                "model:PATH", "ngram+planes:K", "ngram+model:PATH", "auto" (measures what is worth it) or None.

        Raises:
            FormatError: the checkpoint is damaged.
            ValueError: an argument is wrong, the model is of an unknown family, the draft does not fit it, or
                `memory_limit` is too small for it.
        """
        check_loading(
            activation=activation,
            cache_type=cache_type,
            context_length=context_length,
            head_bits=head_bits,
            embedding_bits=embedding_bits,
            num_threads=num_threads,
            max_positions=max_positions,
            chunk_size=chunk_size,
            max_batch=max_batch,
            max_queue=max_queue,
            kept_positions=kept_positions,
        )
        found = needed("tmac.runtime.opening").open_engine(
            path,
            draft=draft,
            memory_limit=memory_limit,
            cache_type=cache_type or ("f32" if activation == "float" else "f16"),
            max_positions=max_positions,
            chunk_size=chunk_size,
            max_batch=max_batch,
            kept_positions=KEPT_POSITIONS if kept_positions is None else kept_positions,
            num_threads=num_threads or 0,
            activation=activation,
            head_bits=head_bits,
            embedding_bits=embedding_bits,
            requantize=requantize,
            revision=revision,
            progress=progress,
            context_length=context_length,
        )
        parts = found.parts
        return cls(
            found.decoder,
            parts.tokenizer,
            model_config=parts.model_config,
            config=parts.config,
            eos_ids=parts.eos_ids,
            context_length=parts.context_length,
            chat_template=parts.chat_template,
            cache_type=found.cache_type,
            chunk_size=chunk_size,
            num_threads=num_threads,
            max_batch=found.max_batch,
            max_queue=max_queue,
            kept_positions=kept_positions,
            draft=found.draft,
            controller=found.controller,
            streamed=found.streamed,
        )

    @overload
    def generate(self, prompt: Any, *, stream: Literal[True], **options: Any) -> Stream: ...
    @overload
    def generate(self, prompt: str | Sequence[int], *, stream: Literal[False] = ..., **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Any, *, stream: bool = ..., **options: Any) -> Any: ...

    def generate(self, prompt: Any, *, stream: bool = False, prompt_cache: Any = None, **options: Any) -> Any:
        """Continues a prompt, or several at once.

        Args:
            prompt: a text, a list of token ids, or a list of these.
            stream: return an iterator of `Chunk`.
            prompt_cache: a file of `save_prompt`; what the prompt has in common with it is not evaluated again.
            options: `max_new_tokens=128`, `temperature=0.0` (greedy), `top_k=0`, `top_p=1.0`, `min_p=0.0`,
                `repetition_penalty=1.0`, `presence_penalty=0.0`, `frequency_penalty=0.0`, `logit_bias={}`, `seed=0`,
                `stop=()`, `logprobs=None`, `json_schema=None`, `grammar=None`, `regex=None`,
                `add_special_tokens=True`, `ignore_eos=False`, `context_shift=False`, `n_keep=4`, `speculative=True`:
                the fields of `SamplingParams` and `Options`, where they are described.

        Returns:
            A `Generation`, a list of them for a list of prompts, or with `stream` a `Stream`, whose chunks have the
            `index` of their prompt. Its text goes on from the prompt's: the first word keeps its space.

        Raises:
            TypeError, ValueError: an argument is wrong, the prompt is empty or longer than the context, or the
                logits are no numbers.
            KeyboardInterrupt: everything that this call asked for is cancelled; the engine stays usable.
        """
        single = is_one_prompt(prompt)
        return self._run([prompt] if single else list(prompt), single, stream, prompt_cache, options, continues=True)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        stream: bool = False,
        prompt_cache: Any = None,
        tools: Sequence[Any] | None = None,
        template: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The assistant's answer to messages, dictionaries with `role` and `content`.

        Args:
            messages: the conversation so far.
            stream: return an iterator of `Chunk`.
            prompt_cache: see `generate`.
            tools: descriptions of functions for the template.
            template: what else the template may ask for, `{"enable_thinking": False}` for instance.
            options: as in `generate`, but for `add_special_tokens`: the template has them.

        Returns:
            A `Generation` or a `Stream`. Its text is a new one.

        Raises:
            ValueError: the model has no chat template, the template refuses the messages; else as in `generate`.
        """
        text = self.apply_chat_template(messages, tools=tools, **(template or {}))
        options = {**options, "add_special_tokens": False}
        return self._run([text], True, stream, prompt_cache, options, continues=False)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """Messages as the text that the model was trained on; encode it without special tokens, for it has its own.

        Args:
            messages: with `role` and `content`.
            add_generation_prompt: end with what makes the model answer.
            tools: descriptions of functions for the template.
            variables: what else the template may ask for.

        Raises:
            ValueError: the model has no template, or it refuses the messages.
        """
        if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
            raise TypeError(f"messages: expected a list of dictionaries, found {shown(messages)}")
        if not messages:
            raise ValueError("messages: expected at least one, found none")
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise TypeError(f"messages: expected dictionaries with a role, found {shown(message)}")
        if self._chat_template is None:
            raise ValueError("messages: the model has no chat template: use generate with a prompt of your own")
        return str(
            self._chat_template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)
        )

    def chat_template(self, with_tools: bool = False) -> str | None:
        """The source of the template that renders messages, or messages with tools; None: the model has none."""
        return None if self._chat_template is None else str(self._chat_template.source(None, with_tools))

    def submit(
        self,
        prompt: str | Sequence[int],
        *,
        on_chunk: Callable[[Chunk], None] | None = None,
        prompt_cache: Any = None,
        continues: bool = True,
        **options: Any,
    ) -> Request:
        """Continues a prompt in a thread of the engine: for servers.

        Args:
            prompt: a text or a list of token ids.
            on_chunk: called with each chunk in the engine's thread; it must not wait. Hold the request all the same.
            prompt_cache: see `generate`.
            continues: False for a text that does not go on from the prompt's, an answer for instance.
            options: as in `generate`.

        Returns:
            A `Request`: an iterator of chunks, `result()` waits for all, `cancel()` ends it; from any thread. A
            request that nobody holds any more is cancelled.

        Raises:
            QueueFullError: too many wait.
            TypeError, ValueError: as in `generate`.
        """
        if not is_one_prompt(prompt):
            raise TypeError("prompt: submit takes one prompt, found a list of them")
        self._use_prompt_cache(prompt_cache)
        requests, tasks = self._prepare([prompt], Options.of(**options), None, continues, on_chunk)
        self._scheduler.submit(tasks, background=True)
        return requests[0]

    def logits(self, ids: Sequence[int]) -> Floats:
        """Logits of every token of a text: f32 `[tokens, vocab]`, row i for the token after `ids[: i + 1]`.

        Raises:
            TypeError, ValueError: `ids` are no token ids, or more than the context has.
        """
        return self._evaluator.rows(self._checked("ids", ids))

    def log_probabilities(self, ids: Sequence[int]) -> Floats:
        """Log-probability of every token of a text but the first, given those before it: f32 `[tokens - 1]`.

        Raises:
            TypeError, ValueError: as in `logits`.
        """
        return self._evaluator.log_probabilities(self._checked("ids", ids))

    def token_logprobs(
        self, ids: Sequence[int], top: int = 0, cancelled: Callable[[], bool] = lambda: False
    ) -> list[TokenLogprob]:
        """What `log_probabilities` gives, with the `top` most likely tokens at each place.

        Args:
            ids: of a text.
            top: how many.
            cancelled: asked after every pass; True ends it.

        Raises:
            TypeError, ValueError: as in `logits`.
            RuntimeError: it was cancelled.
        """
        checked, count = self._checked("ids", ids), integer("top", top, 0, self.vocab_size)
        return self._evaluator.token_logprobs(checked, count, cancelled)

    def save_prompt(self, path: str | Path, prompt: str | Sequence[int], add_special_tokens: bool = True) -> int:
        """Evaluates a prompt and writes its keys and values to a file for `prompt_cache=`. Returns its tokens.

        Raises:
            TypeError, ValueError: as in `generate`.
            OSError: the file cannot be written.
        """
        if not is_one_prompt(prompt):
            raise TypeError("prompt: save_prompt takes one prompt, found a list of them")
        ids = self._ids(prompt, add_special_tokens)
        self._evaluator.save(path, ids)
        return len(ids)

    @contextmanager
    def exclusive(self) -> Iterator[Decoder]:
        """The decoder, while no passes of others run: to measure, for instance. Raises RuntimeError when closed."""
        with self._scheduler.exclusive():
            yield self._passes.decoder

    def drop_prompts(self) -> None:
        """Releases the evaluated prompts that are kept for later ones that begin alike."""
        with self._scheduler.exclusive():
            self._passes.drop_prefixes()

    @property
    def streamed(self) -> Any:
        """The `StreamedModel` of an engine with a `memory_limit`: its `plan` and `statistics()`; None without one."""
        return self._streamed

    def close(self) -> None:
        """Cancels everything and gives the cache back. The engine cannot be used any more; twice is once."""
        self._scheduler.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self,
        prompts: Sequence[Any],
        single: bool,
        stream: bool,
        prompt_cache: Any,
        options: dict[str, Any],
        continues: bool,
    ) -> Any:
        checked = Options.of(**options)
        self._use_prompt_cache(prompt_cache)
        outbox = Outbox()
        requests, tasks = self._prepare(prompts, checked, outbox, continues, None)
        try:
            self._scheduler.submit(tasks, background=False)
            if stream:
                return Stream(self._scheduler, requests, outbox)
            results = [request.result() for request in requests]
        except BaseException:
            Stream(self._scheduler, requests, outbox).close()
            raise
        return results[0] if single else results

    def _prepare(
        self,
        prompts: Sequence[Any],
        options: Options,
        outbox: Outbox | None,
        continues: bool,
        on_chunk: Callable[[Chunk], None] | None,
    ) -> tuple[list[Request], list[Task]]:
        all_ids = [self._ids(prompt, options.add_special_tokens) for prompt in prompts]
        requests, tasks = [], []
        for index, ids in enumerate(all_ids):
            request = Request(self._scheduler, len(ids), outbox, on_chunk, owner=self)
            task = Task(
                self._model,
                ids,
                options,
                constraint=self._grammars.constraint(options),
                continues=continues,
                index=index,
                **weak_callbacks(request),
            )
            requests.append(request)
            tasks.append(task)
        return requests, tasks

    def _ids(self, prompt: Any, add_special_tokens: bool) -> list[int]:
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        return self._checked("prompt", prompt)

    def _checked(self, name: str, ids: Any) -> list[int]:
        checked = checked_ids(name, ids, self.vocab_size)
        if len(checked) > self.context_length:
            raise ValueError(f"{name}: {len(checked)} tokens are more than the context has, {self.context_length}")
        return checked

    def _use_prompt_cache(self, path: Any) -> None:
        if path is not None:
            self._evaluator.load(path)
