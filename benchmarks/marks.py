"""The part of a document between two marks: what is rendered from a run's JSON file, which the first mark names."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Marks:
    """`<!-- NAME: FILE -->` and `<!-- end of NAME -->`, each on its line."""

    name: str

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(rf"<!-- {self.name}: (\S+) -->\n.*?<!-- end of {self.name} -->\n", re.DOTALL)

    def source(self, text: str) -> str:
        """The file that the text between the marks comes from. Raises ValueError where they are not there."""
        found = self.pattern.search(text)
        if found is None:
            raise ValueError(f"no <!-- {self.name}: FILE --> ... <!-- end of {self.name} -->")
        return found[1]

    def replaced(self, text: str, path: str, body: str) -> str:
        """The text with `body` between its marks. Raises ValueError where they are not there exactly once."""
        block = f"<!-- {self.name}: {path} -->\n{body}<!-- end of {self.name} -->\n"
        result, count = self.pattern.subn(lambda _: block, text)
        if count != 1:
            name = self.name
            raise ValueError(f"{count} places marked <!-- {name}: FILE --> ... <!-- end of {name} -->, not one")
        return result
