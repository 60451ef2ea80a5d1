"""Stands in for `tmac.runtime.engine`: answers with the words that it is given, a chunk each."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Timings:
    queued: float = 0.0
    prompt: float = 0.5
    generation: float = 0.25
    prompt_tokens: int = 10
    reused_tokens: int = 4
    generated_tokens: int = 3
    prompt_tokens_per_second: float = 12.0
    generated_tokens_per_second: float = 8.0


@dataclass(frozen=True)
class Chunk:
    text: str
    finish_reason: str | None = None
    timings: Timings | None = None
    speculation: object = None


@dataclass(frozen=True)
class Generation:
    text: str
    token_ids: list
    finish_reason: str
    prompt_tokens: int
    timings: Timings
    logprobs: list | None = None
    stop: str | None = None
    speculation: object = None


@dataclass
class FakeEngine:
    """`answers` are texts, one for each call, or exceptions: raised by the call, or after a piece where in a tuple.

    `speculation` is taken from in the same way, while there is any; `streamed` as of the real one.
    """

    answers: list = field(default_factory=list)
    calls: list = field(default_factory=list)
    loaded: dict = field(default_factory=dict)
    load_error: Exception | None = None
    closed: int = 0
    cancelled: int = 0
    speculation: list = field(default_factory=list)
    streamed: object = None

    def from_pretrained(self, path, **options):
        self.loaded = {"path": path, **options}
        if self.load_error is not None:
            raise self.load_error
        return self

    def close(self):
        self.closed += 1

    def generate(self, prompt, **options):
        self.calls.append((prompt, options))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return self._stream(answer) if options.get("stream") else self._whole(answer)

    def apply_chat_template(self, messages):
        return "".join(f"<{message['content']}>" for message in messages)

    def save_prompt(self, path, prompt, add_special_tokens=True):
        path.write_text(f"{prompt} {add_special_tokens}")

    def chat(self, messages, **options):
        return self.generate([dict(message) for message in messages], **options)

    def _whole(self, answer):
        return Generation(answer, [1, 2, 3], "stop", 10, Timings(), speculation=self._guessed())

    def _guessed(self):
        return self.speculation.pop(0) if self.speculation else None

    def _stream(self, answer):
        text, error = answer if isinstance(answer, tuple) else (answer, None)
        try:
            for word in text.split(" "):
                yield Chunk(word + ("" if text.endswith(word) else " "))
            if error is not None:
                raise error
            yield Chunk("", "stop", Timings(), self._guessed())
        except BaseException:
            self.cancelled += 1
            raise
