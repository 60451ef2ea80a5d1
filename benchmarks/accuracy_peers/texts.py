"""Calibration and held-out texts that ship in packages: different sources, so that neither knows the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

SPACE = "\n\n"  # between passages
HELD_OUT = ("wikipedia_5", "owt_5")
LEAST_LETTERS = 400  # of a passage that is worth reading


def package_folder(name: str) -> Path:
    """Where an installed package is. Raises ValueError where it is not."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"[accuracy] the package {name} is needed for its texts: pip install {name}, or name a file")
    return Path(spec.submodule_search_locations[0])


def calibration_text() -> str:
    """News and Wikipedia articles in turn, from the package gensim."""
    data = package_folder("gensim") / "test" / "test_data"
    news = (data / "lee_background.cor").read_text(encoding="utf-8").splitlines()
    return mixed(news, list(wikipedia(data)))


def mixed(*sources: list[str]) -> str:
    """Passages of the sources in turn; the rest of the longer ones at the end."""
    turns = zip_longest(*([passage for passage in source if passage.strip()] for source in sources))
    return SPACE.join(passage.strip() for turn in turns for passage in turn if passage)


def wikipedia(data: Path) -> Iterator[str]:
    """Articles of gensim's excerpt of Wikipedia, as sentences without markup."""
    import bz2

    package: Any = import_module("gensim.corpora.wikicorpus")
    (dump,) = data.glob("enwiki-*-shortened.bz2")
    with bz2.open(dump) as file:
        for _, text, _ in package.extract_pages(file, ("0",)):
            paragraphs = [line.strip() for line in package.filter_wiki(text).splitlines()]
            prose = [line for line in paragraphs if len(line) > 80 and line[0].isalpha() and line[-1] in '.!?"']
            if sum(map(len, prose)) >= LEAST_LETTERS:
                yield "\n".join(prose[:6])


def held_out_texts() -> list[str]:
    """Passages of Wikipedia and of web pages, from the package evals: one text a source."""
    folder = package_folder("evals") / "registry" / "data" / "schelling_point"
    texts = []
    for name in HELD_OUT:
        lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        texts.append(SPACE.join(dict.fromkeys(json.loads(line)["0"].strip() for line in lines)))
    return texts
