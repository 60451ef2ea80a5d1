"""Texts to measure on and to calibrate with: local files, and files of installed packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tmac.evaluation.jsonl import read_jsonl, text_field
from tmac.evaluation.packaged import is_packaged, packaged_file
from tmac.evaluation.wiki_text import articles

BETWEEN = "\n\n"
TEXTS = ("package:gensim/news", "package:gensim/wikipedia", "package:evals/wikipedia", "package:evals/owt")


def load_text(source: str | os.PathLike[str], max_characters: int | None = None) -> str:
    """A text as one string; documents of a source with several are set apart by an empty line.

    Args:
        source: a file of UTF-8 text; a `.jsonl` file with a `"text"` in every line; or a name in `TEXTS`.
        max_characters: documents after so many are not read; None: all are.

    Raises:
        ValueError: the name is unknown or its package is not installed, a line is no such object, or there is no text.
        OSError: the file cannot be read.
    """
    return BETWEEN.join(load_documents(source, max_characters))


def load_documents(source: str | os.PathLike[str], max_characters: int | None = None) -> list[str]:
    """The documents of a source, in its order, none empty; a file of plain text is one. Arguments as `load_text`."""
    documents: list[str] = []
    room = sys.maxsize if max_characters is None else max_characters
    for each in filter(None, map(str.strip, _documents(source))):
        documents.append(each)
        room -= len(each)
        if room <= 0:
            break
    if not documents:
        raise ValueError(f"[texts] {os.fspath(source)} holds no text")
    return documents


def _documents(source: str | os.PathLike[str]) -> Iterator[str]:
    if is_packaged(source):
        yield from _packaged(str(source))
        return
    path = Path(source)
    if path.suffix == ".jsonl":
        yield from (text_field(place, value, "text") for place, value in read_jsonl(path))
    else:
        yield _utf8(path)


def _packaged(source: str) -> Iterator[str]:
    if source not in TEXTS:
        raise ValueError(f"[texts] expected a text, one of {', '.join(TEXTS)}, found {source}")
    path = packaged_file(source)
    if path.suffix == ".bz2":
        yield from articles(path)
    elif path.suffix == ".jsonl":  # "0" is the passage, the other keys are copies with its sentences in another order
        yield from (text_field(place, value, "0") for place, value in read_jsonl(path))
    else:
        yield from _utf8(path).splitlines()


def _utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"[texts] {path}: expected UTF-8 text ({error.reason} at byte {error.start})") from error
