"""The tables in the documentation are what the committed runs render, and its commands install what the peers need."""

import importlib
import json
import re

import pytest


@pytest.fixture(params=["README.md", "docs/benchmarks.md"])
def document(request, repository):
    return request.param, (repository / request.param).read_text(encoding="utf-8")


def test_a_table_is_what_the_committed_run_renders(document, repository):
    from benchmarks.peers.readme import MARKS, PLACES

    name, text = document
    path = MARKS.source(text)
    report = json.loads((repository / path).read_text(encoding="utf-8"))
    assert text == MARKS.replaced(text, path, PLACES[name](report))
    assert len({row["peer"] for row in report["rows"]}) > 1


def test_the_commands_install_the_versions_that_the_peers_ask_for(document):
    from benchmarks.peers.__main__ import MODULES
    from benchmarks.peers.peer import Peer

    _, text = document
    for module in MODULES.values():
        found = vars(importlib.import_module(f"benchmarks.peers.{module}")).values()
        peer = next(
            value for value in found if isinstance(value, type) and issubclass(value, Peer) and value is not Peer
        )
        for requirement in re.findall(r"\S+==\S+", peer.install):
            assert requirement in text


def test_the_run_has_the_versions_that_the_commands_install(document, repository):
    from benchmarks.peers.readme import MARKS

    _, text = document
    report = json.loads((repository / MARKS.source(text)).read_text(encoding="utf-8"))
    versions = {name: number.split("+")[0] for each in report["versions"].values() for name, number in each.items()}
    for requirement in re.findall(r"[\w-]+==[\d.]+", text):
        name, number = requirement.split("==")
        assert versions.get(name, number) == number


def test_a_committed_run_names_no_place_of_the_machine_it_was_taken_on(repository):
    runs = list((repository / "benchmarks" / "results").glob("*.json"))
    assert runs
    for run in runs:
        text = run.read_text(encoding="utf-8")
        assert not re.search(r'"[^"]*(?<![\w.])(/[\w.-]+){2}|[A-Za-z]:\\\\', text), run.name


def test_our_side_of_the_run_is_what_a_user_gets(document, repository):
    """On the CPU of the run, or one with its features: the kernels that a spec is packed for without tuning."""
    from benchmarks.peers.readme import MARKS
    from tmac import QuantSpec, _core

    _, text = document
    report = json.loads((repository / MARKS.source(text)).read_text(encoding="utf-8"))
    features = {name for name, present in _core.cpu_features().items() if present}
    rows = {row["name"]: row for row in _core.kernels()}
    for row in report["rows"]:
        name, *words = row["ours"]["kernel"].split()
        assert name in rows
        if row["job"]["m"] > 16 or not set(report["machine"]["features"]) <= features:
            continue
        group = int(words[0][1:]) if words[0] != "per" else -1
        more = {"zero_point": "offset"} if "offset" in words else {}
        spec = QuantSpec(rows[name]["bits"], group, rows[name]["codebook"], **more)
        assert _core.select_kernel(spec) == name, row["ours"]["kernel"]
