"""An engine without a model, whose texts a test writes and holds up: bytes are tokens, 256 ends a text."""

import json
import threading
import time
from dataclasses import dataclass, field

from tmac.runtime.generate import Chunk, TokenLogprob

END, BEGIN, VOCAB = 256, 257, 258
TEMPLATE = "{{ messages }}"
TOOL_TEMPLATE = "{{ messages }} <tool_call>{...}</tool_call>"


def byte_level():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + place) for place, byte in enumerate(sorted(set(range(256)) - set(printable)))}


class ByteTokenizer:
    """UTF-8 bytes as tokens."""

    vocab_size = VOCAB

    def encode(self, text, add_special_tokens=True):
        return [BEGIN] * add_special_tokens + list(text.encode())

    def decode(self, ids, skip_special_tokens=True):
        if skip_special_tokens:
            return bytes(token for token in ids if token < END).decode("utf-8", "replace")
        special = {END: b"<end>", BEGIN: b"<begin>"}
        return b"".join(special.get(token) or bytes([token]) for token in ids).decode("utf-8", "replace")

    def to_json(self):
        vocab = {char: byte for byte, char in byte_level().items()}
        added = [{"id": END, "content": "<end>"}, {"id": BEGIN, "content": "<begin>"}]
        content = {"model": {"vocab": vocab}, "decoder": {"type": "ByteLevel"}, "added_tokens": added}
        return json.dumps(content)


@dataclass
class FakeRequest:
    """Gives a text out token by token, as far as the test lets it."""

    engine: "FakeEngine"
    prompt: list
    options: dict
    text: str
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self):
        self.cancelled.set()

    def __iter__(self):
        ids = [*self.text.encode(), END]
        limit = self.options["max_new_tokens"]
        sent, held = "", b""
        for count, token in enumerate(ids, 1):
            self.engine.wait(self, count)
            if self.cancelled.is_set():
                yield Chunk("", (), finish_reason="cancelled")
                return
            if token == END:
                yield self.chunk("", token, "stop")
                return
            held += bytes([token])
            try:
                text, held = held.decode(), b""
            except UnicodeDecodeError:
                text = ""
            stop = next((stop for stop in self.options["stop"] if (sent + text).endswith(stop)), None)
            if stop is not None:
                yield self.chunk("", token, "stop", stop)
                return
            sent += text
            last = count == limit
            yield self.chunk(text, token, "length" if last else None)
            if last:
                return

    def chunk(self, text, token, finish_reason, stop=None):
        logprobs = None
        top = self.options.get("logprobs")
        if top is not None:
            logprobs = (logprob_of(token, top),)
        speculation = self.engine.speculation if finish_reason and self.options["speculative"] else None
        return Chunk(text, (token,), logprobs, finish_reason, stop=stop, speculation=speculation)


def logprob_of(token, top):
    """A token is as likely as its number says, and those after it in the alphabet are a bit less so."""
    return TokenLogprob(token, -token / 100, tuple(((token + i) % 256, -(token + i) / 100) for i in range(top)))


class FakeEngine:
    """What the server needs of `tmac.Engine`.

    Args:
        reply: prompt text -> text.
        context_length: as of the real one.
        chat_template: as of the real one.
    """

    def __init__(self, reply=lambda prompt: f"after {prompt}", context_length=4096, chat_template=TEMPLATE):
        self.reply, self.context_length, self.template = reply, context_length, chat_template
        self.tokenizer, self.vocab_size = ByteTokenizer(), VOCAB
        self.requests = []
        self.speculation = None  # of every text that allows it
        self.go = threading.Semaphore(0)
        self.held_from = None  # texts wait for `go` before this token
        self.failure = None  # (token, error)
        self.refusal = None
        self.scoring_held = False
        self.changed = threading.Condition()

    def submit(self, prompt, **options):
        if self.refusal is not None:
            raise self.refusal
        request = FakeRequest(self, prompt, options, self.reply(self.tokenizer.decode(prompt)))
        with self.changed:
            self.requests.append(request)
            self.changed.notify_all()
        return request

    def wait(self, request, count):
        if self.failure is not None and count == self.failure[0]:
            raise self.failure[1]
        if self.held_from is not None and count >= self.held_from:
            while not self.go.acquire(timeout=0.02):
                if request.cancelled.is_set():
                    return

    def chat_template(self, with_tools=False):
        return self.template

    def apply_chat_template(self, messages, add_generation_prompt=True, tools=None, **variables):
        assert add_generation_prompt
        if any(message["content"] == "refused" for message in messages):
            raise ValueError("roles must alternate")
        return json.dumps({"messages": messages, "tools": tools, **variables})

    def token_logprobs(self, ids, top, cancelled):
        while self.scoring_held:
            if cancelled():
                self.scoring_held = False
                raise RuntimeError("cancelled")
            time.sleep(0.01)
        return [logprob_of(token, top) for token in ids[1:]]

    def await_requests(self, count, seconds=30):
        """The requests, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.requests) >= count, seconds)
            return list(self.requests)
