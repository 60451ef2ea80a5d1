"""Wikipedia's markup as plain text: sentences stay, everything around them goes."""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
EMPTY_TAG = re.compile(r"<(?:ref|references)\b[^<>]*/>", re.IGNORECASE)
DROPPED_TAGS = (
    *("ref", "math", "gallery", "timeline", "table", "score", "imagemap", "hiero"),
    *("syntaxhighlight", "source", "code", "pre"),
)
DROPPED = re.compile(rf"<({'|'.join(DROPPED_TAGS)})\b[^<>]*>.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
# Each of the three matches what holds none of its own kind.
TEMPLATE = re.compile(r"\{\{([^{}]*(?:(?:\{(?!\{)|\}(?!\}))[^{}]*)*)\}\}")
TABLE = re.compile(r"^[ :]*\{\|[^{|]*(?:(?:\{(?!\|)|\|(?!\}))[^{|]*)*\|\}", re.MULTILINE)
LINK = re.compile(r"\[\[([^\[\]]*(?:(?:\[(?!\[)|\](?!\]))[^\[\]]*)*)\]\]")
WEB_LINK = re.compile(r"\[(?:https?:|ftp:|//)[^\s\]]*([^\]]*)\]")
NOT_TEXT = re.compile(r"(?:file|image|category|media|wikt|wiktionary|[a-z]{2,3}(?:-[a-z]+)*|simple)\s*:", re.IGNORECASE)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
EMPHASIS = re.compile(r"'{2,}")
HEADING = re.compile(r"^(=+)\s*(.*?)\s*=+\s*$")
LIST_MARK = re.compile(r"^[*#:;]+\s*")
SWITCH = re.compile(r"__[A-Z]+__")
EMPTY_BRACKETS = re.compile(r"\s*\(\s*[,;:]*\s*\)")
BRACKET_START = re.compile(r"\(\s*[,;]\s*")
SPACES = re.compile(r"[ \t\u00a0]+")
BEFORE_MARK = re.compile(r" +([,.;:!?)])")
# Sections of lists and citations.
LEFT_OUT = frozenset(
    ("see also", "references", "external links", "further reading", "bibliography", "notes", "footnotes", "sources")
)


def articles(path: Path) -> Iterator[str]:
    """Plain text of every article of a bz2 dump of pages, those that only point to another one left out."""
    with bz2.open(path) as file:
        for _, element in ET.iterparse(file):
            if element.tag.rpartition("}")[2] != "page":
                continue
            parts = {child.tag.rpartition("}")[2]: child for child in element}
            if "redirect" not in parts and parts["ns"].text == "0":
                markup = next((each.text or "" for each in parts["revision"] if each.tag.endswith("}text")), "")
                yield plain_text(markup)
            element.clear()


def plain_text(markup: str) -> str:
    """The sentences and headings of an article.

    Comments, citations, formulas, tables, pictures, categories and templates go; of links and of a few templates the
    words stay that a reader sees. Sections that hold only citations and links are left out.
    """
    text = COMMENT.sub("", markup)
    text = DROPPED.sub("", EMPTY_TAG.sub("", text))
    text = _innermost_first(TEMPLATE, _template, text)
    text = _innermost_first(TABLE, lambda _: "", text)
    text = WEB_LINK.sub(lambda match: match[1].strip(), text)
    text = _innermost_first(LINK, _link, text)
    text = html.unescape(html.unescape(TAG.sub("", text)))
    text = EMPHASIS.sub("", SWITCH.sub("", text))
    return "\n".join(_paragraphs(text))


def _innermost_first(pattern: re.Pattern[str], replace: Callable[[re.Match[str]], str], text: str) -> str:
    found = 1
    while found:
        text, found = pattern.subn(replace, text)
    return text


def _template(match: re.Match[str]) -> str:
    name, *values = (part.strip() for part in match[1].split("|"))
    name = name.lower()
    if name in ("lang", "nowrap", "transl") and values:
        return values[-1]
    if name == "convert" and len(values) >= 2:
        return f"{values[0]} {values[1]}"
    return ""


def _link(match: re.Match[str]) -> str:
    target, _, label = match[1].partition("|")
    if NOT_TEXT.match(target.strip()):
        return ""
    return label.rpartition("|")[2] if label else target.lstrip(":")


def _paragraphs(text: str) -> Iterator[str]:
    left_out = 0  # level of the heading whose section is being left out
    for line in text.splitlines():
        heading = HEADING.match(line.strip())
        if heading is not None:
            level = len(heading[1])
            if not left_out or level <= left_out:
                left_out = level if heading[2].lower() in LEFT_OUT else 0
            line = heading[2]
        line = _tidy(LIST_MARK.sub("", line))
        if line and not left_out:
            yield line


def _tidy(line: str) -> str:
    line = BRACKET_START.sub("(", EMPTY_BRACKETS.sub("", SPACES.sub(" ", line)))
    return BEFORE_MARK.sub(r"\1", line).strip()
