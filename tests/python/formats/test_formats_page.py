"""What docs/formats.md names as a proof is there."""

import re

import pytest
from small_checkpoints import FORMATS

from tmac.formats import READERS


@pytest.fixture(scope="module")
def proofs(repository):
    """The last column of the first table: (format, what is between backticks)."""
    text = (repository / "docs" / "formats.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.partition("## ")[0].splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[0]] == ["format", "bits", "feature", "shown by"]
    return [(row[0].strip(), re.findall(r"`([^`]+)`", row[-1])) for row in rows[1:]]


def test_every_row_names_a_proof(proofs):
    assert len(proofs) > 20
    assert all(names for _, names in proofs)


def test_the_tests_exist(repository, proofs):
    tests: dict[str, str] = {}  # files of one name in several folders count together
    for path in (repository / "tests" / "python").rglob("test_*.py"):
        tests[path.name] = tests.get(path.name, "") + path.read_text(encoding="utf-8")
    found = 0
    for _, names in proofs:
        for name in names:
            file, _, function = name.partition("::")
            if file.endswith(".py"):
                assert file in tests
                assert f"def {function}" in tests[file]
                found += 1
    assert found > 10


def test_the_checkpoints_exist(fixtures_dir, proofs):
    named = {name for _, names in proofs for name in names if not name.partition("::")[0].endswith(".py")}
    there = {path.name for path in fixtures_dir.iterdir() if path.is_dir()} - {"base256-fp16", "gguf"}
    assert named == there


def test_every_reader_has_a_small_checkpoint_and_a_row(proofs):
    small = {READERS.get(name, name) for name in FORMATS}
    assert {*READERS.values(), "float", "gguf"} == small
    rows = {name.lower().replace("-", "").replace("ours", "tmac_file") for name, _ in proofs}
    modules = {name.replace("_", "").replace("tmacfile", "tmac_file") for name in small}
    assert rows == modules
