"""Which names mean the hub, what is asked of it, and what is said where it gives nothing."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from tmac.runtime.hub import local_path


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the hub was asked for; it has every repository."""
    found = {}

    def snapshot_download(repository, **options):
        found.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return found


def test_what_is_there_is_no_name_of_the_hub(asked, tmp_path):
    assert local_path(tmp_path) == local_path(str(tmp_path)) == tmp_path
    assert not asked


def test_a_repository(asked, tmp_path):
    assert local_path("owner/name", "main") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("owner/name", "main")
    assert {"config.json", "tokenizer.json", "*.safetensors"} <= set(asked["allow_patterns"])
    assert not [pattern for pattern in asked["allow_patterns"] if pattern.endswith((".bin", ".pt", ".gguf"))]


def test_one_file_of_a_repository(asked, tmp_path):
    assert local_path("owner/name/model-q4.gguf") == tmp_path / "model-q4.gguf"
    assert asked["repository"] == "owner/name"
    assert "model-q4.gguf" in asked["allow_patterns"]
    assert "*.safetensors" not in asked["allow_patterns"]


@pytest.mark.parametrize("name", ["/nowhere/model", "./model", "model.gguf", "~/model", "a/b/c/d", Path("owner/name")])
def test_paths_that_are_not_there(asked, name):
    with pytest.raises(FileNotFoundError, match="there is no file or folder"):
        local_path(name)
    assert not asked


def test_a_hub_that_gives_nothing(monkeypatch):
    def snapshot_download(repository, **options):
        raise LocalEntryNotFoundError("Name or service not known\nPlease check your internet connection.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    message = r"no file or folder some-model, and the hub did not give it: Name or service not known$"
    with pytest.raises(FileNotFoundError, match=message):
        local_path("some-model")


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="is neither a path nor the id of a repository"):
        local_path("two words")
