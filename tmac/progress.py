"""A progress bar for what may take over two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def with_progress(items: Iterable[Item], title: str, progress: bool | None, total: int | None = None) -> Iterator[Item]:
    """`items` under a bar: after two seconds on a terminal; at once where `progress` is True; none without tqdm.

    `total` is their number where they do not say it themselves.
    """
    if progress is not False:
        try:
            from tqdm import tqdm  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            progress = False
    if progress is False:
        yield from items
    else:
        yield from tqdm(items, title, total, disable=not progress and None, delay=0 if progress else 2)
