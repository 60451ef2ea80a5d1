"""The tokenizer of a checkpoint, over the tokenizers package: special tokens, what ends an answer, chat templates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from tmac.formats import FormatError
from tmac.formats.checkpoint import Checkpoint
from tmac.formats.errors import format_error
from tmac.formats.json_file import parse_json
from tmac.formats.regular_file import open_regular
from tmac.runtime.chat_template import ChatTemplates
from tmac.runtime.tokenizer_backend import make_backend

MAX_BYTES = 256 << 20
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# How chat models end a turn. GGUF files name one end of text: a token of these that their template writes is another.
ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>")


class Tokenizer:
    """Text to token ids and back.

    Args:
        backend: of the tokenizers package; it is changed.
        special: `bos_token` and the like.
        eos_ids: tokens that end a generation.
        chat_template: of chat models, None of others.
    """

    def __init__(
        self,
        backend: Backend,
        special: Mapping[str, str] | None = None,
        eos_ids: Iterable[int] = (),
        chat_template: ChatTemplates | None = None,
    ) -> None:
        self.backend = backend
        self.special = dict(special or {})
        self.eos_ids = frozenset(eos_ids)
        self.chat_template = chat_template
        backend.no_truncation()
        backend.no_padding()
        _forget_words(backend)
        known = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens(
            [
                AddedToken(text, special=True, normalized=False)
                for text in dict.fromkeys(self.special.values())
                if text not in known and backend.token_to_id(text) is not None
            ]
        )

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @property
    def bos_id(self) -> int | None:
        """The id of the first token of a text, where there is one."""
        return self._id("bos_token")

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that decoding leaves out."""
        return frozenset(index for index, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            ValueError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"[tokenizer] the text is no Unicode: {error.reason} at {error.start}") from error
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD.

        Raises:
            ValueError: an id is negative.
        """
        if any(index < 0 for index in ids):
            raise ValueError(f"[tokenizer] expected ids of 0 and more, found {min(ids)}")
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None where there is none of this name."""
        index: int | None = self.backend.token_to_id(token)
        return index

    def id_to_token(self, index: int) -> str | None:
        """The token of an id, as the vocabulary spells it."""
        token: str | None = self.backend.id_to_token(index)
        return token

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        text: str = self.backend.to_str()
        return text

    def _id(self, name: str) -> int | None:
        return self.token_to_id(self.special[name]) if name in self.special else None


class NoTokenizer:
    """Stands for the tokenizer of a checkpoint without one: prompts are token ids then, and texts are empty.

    Args:
        reason: why there is none.
        eos_ids: tokens that end a text.
    """

    chat_template = None
    vocab_size = 0
    bos_id = None
    special_ids: frozenset[int] = frozenset()

    def __init__(self, reason: str, eos_ids: set[int]) -> None:
        self.reason, self.eos_ids = reason, eos_ids

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Raises ValueError: only token ids can be a prompt."""
        raise ValueError(f"{self.reason}; a prompt must be token ids")

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """No text."""
        return ""

    def token_to_id(self, token: str) -> None:
        """No token has a name."""

    def id_to_token(self, index: int) -> None:
        """No token has a name."""

    def to_json(self) -> str:
        """Raises ValueError: what needs the vocabulary cannot be done."""
        raise ValueError(self.reason)


def tokenizer_or_none(checkpoint: Checkpoint) -> Tokenizer | NoTokenizer:
    """The tokenizer of a checkpoint, or what stands for one where there is no `tokenizer.json`.

    Raises:
        FormatError, OSError: as `load_tokenizer`.
    """
    try:
        return load_tokenizer(checkpoint)
    except FileNotFoundError as error:
        generation = _Files(checkpoint).json("generation_config.json")
        return NoTokenizer(str(error), _eos_ids(checkpoint, generation, None, {}, {}))


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint: its `tokenizer.json`, or the one in a GGUF file.

    What stands around a text is what `tokenizer.json` says: transformers, too, reads `add_bos_token` of
    `tokenizer_config.json` only where it makes a tokenizer of other files.

    Raises:
        FormatError: a file is damaged, or a GGUF file's tokenizer of an unsupported kind.
        FileNotFoundError: there is none.
        OSError: a file cannot be opened.
    """
    files = _Files(checkpoint)
    if not files.has("tokenizer.json"):
        raise FileNotFoundError(
            f"[tokenizer] there is no tokenizer.json in {checkpoint.path}; transformers makes one of other files: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    backend = _parse(files)
    settings = files.json("tokenizer_config.json")
    special = _special_tokens(settings, files.json("special_tokens_map.json"))
    templates = _templates(files, settings)
    eos_ids = _eos_ids(checkpoint, files.json("generation_config.json"), backend, special, templates)
    chat_template = ChatTemplates(templates, special) if templates else None
    return Tokenizer(backend, special, eos_ids, chat_template)


class _Files:
    """What lies beside the weights, or in the GGUF file."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.path = checkpoint.path
        self.files = {file.name: file for file in checkpoint.files}
        self.texts = checkpoint.texts

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self.files or name in self.texts

    def text(self, name: str) -> str | None:
        """The text of a file, None where there is none. Raises FormatError where it is no UTF-8, or too long."""
        if name not in self.files:
            return self.texts[name]() if name in self.texts else None
        path = self.files[name]
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise format_error(path, f"expected at most {MAX_BYTES >> 20} MiB, found {size} bytes")
            raw = file.read(size)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise format_error(path, f"expected UTF-8 text ({error.reason} at byte {error.start})") from error

    def json(self, name: str) -> dict[str, Any]:
        """The object in a file, empty where there is none. Raises FormatError."""
        text = self.text(name)
        return {} if text is None else parse_json(text.encode(), self.files.get(name, self.path))


def _forget_words(backend: Backend) -> None:
    """Without the tokenizers package's cache of words: each thread keeps it when the tokenizer is gone.

    Encoding takes up to twice as long without it, which is about a thousandth of evaluating what was encoded.
    """
    resize = getattr(backend.model, "_resize_cache", None)
    if resize is not None:
        resize(0)


def _parse(files: _Files) -> Backend:
    try:
        return make_backend(lambda: files.text("tokenizer.json") or "")
    except BaseException as error:
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError, FormatError, OSError)):
            raise
        # tokenizers raises bare Exceptions, and its panics are BaseExceptions
        raise format_error(files.path, f"the tokenizers package refuses it ({error})", "tokenizer.json") from error


def _special_tokens(*places: Mapping[str, Any]) -> dict[str, str]:
    """The first place that names a token has it; a token may be an object with its text in "content"."""
    found: dict[str, str] = {}
    for place in places:
        for name in SPECIAL:
            value = place.get(name)
            value = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(value, str):
                found.setdefault(name, value)
    return found


def _templates(files: _Files, settings: Mapping[str, Any]) -> dict[str, str]:
    """`chat_template.jinja`, else the tokenizer's configuration, else `chat_template.json`."""
    alone = files.text("chat_template.jinja")
    if alone is not None:
        return {"default": alone}
    template = settings.get("chat_template") or files.json("chat_template.json").get("chat_template")
    if isinstance(template, str):
        return {"default": template}
    named = template if isinstance(template, list) else []
    return {
        each["name"]: each["template"]
        for each in named
        if isinstance(each, Mapping) and isinstance(each.get("name"), str) and isinstance(each.get("template"), str)
    }


def _eos_ids(
    checkpoint: Checkpoint,
    generation: Mapping[str, Any],
    backend: Backend | None,
    special: Mapping[str, str],
    templates: Mapping[str, str],
) -> set[int]:
    """What generation_config.json says, else config.json; the tokenizer's own end; of GGUF files the end of a turn."""
    config = checkpoint.config or {}
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, Mapping) else {}
    places = [place for place in (generation, config, inner) if place.get("eos_token_id") is not None]
    value: Any = places[0]["eos_token_id"] if places else []
    values = value if isinstance(value, list) else [value]
    if any(type(index) is not int or index < 0 for index in values):
        raise format_error(checkpoint.path, f"expected token ids, found {value!r}", "eos_token_id")
    ids = set(values)
    texts = [special["eos_token"]] if "eos_token" in special else []
    if checkpoint.format == "gguf":
        written = "".join(templates.values())
        texts += [text for text in ENDS_OF_TURN if text in written]
    found = [backend.token_to_id(text) for text in texts] if backend is not None else []
    return ids | {index for index in found if index is not None}
