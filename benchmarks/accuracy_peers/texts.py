"""Calibration and held-out texts that ship in packages: different sources, so that neither knows the other."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tmac.evaluation.packaged import packaged_file
from tmac.evaluation.texts import BETWEEN, load_documents, load_text

HELD_OUT = ("package:evals/wikipedia", "package:evals/owt")
LEAST_LETTERS = 400  # of a passage that is worth reading


def calibration_text() -> str:
    """News and Wikipedia articles in turn, from the package gensim."""
    return mixed(load_documents("package:gensim/news"), list(wikipedia(packaged_file("package:gensim/wikipedia"))))


def mixed(*sources: list[str]) -> str:
    """Passages of the sources in turn; the rest of the longer ones at the end."""
    turns = zip_longest(*([passage for passage in source if passage.strip()] for source in sources))
    return BETWEEN.join(passage.strip() for turn in turns for passage in turn if passage)


def wikipedia(dump: Path) -> Iterator[str]:
    """Articles of gensim's excerpt of Wikipedia, as sentences without markup."""
    import bz2

    package: Any = import_module("gensim.corpora.wikicorpus")
    with bz2.open(dump) as file:
        for _, text, _ in package.extract_pages(file, ("0",)):
            paragraphs = [line.strip() for line in package.filter_wiki(text).splitlines()]
            prose = [line for line in paragraphs if len(line) > 80 and line[0].isalpha() and line[-1] in '.!?"']
            if sum(map(len, prose)) >= LEAST_LETTERS:
                yield "\n".join(prose[:6])


def held_out_texts() -> list[str]:
    """Passages of Wikipedia and of web pages, from the package evals: one text a source."""
    return [load_text(source) for source in HELD_OUT]
