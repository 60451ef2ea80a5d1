"""Repositories on the hub: which of their files a model needs."""

from __future__ import annotations

from pathlib import Path

from tmac.formats.source import COMPANIONS, SIDE_CONFIGS

_ALWAYS = ["config.json", *SIDE_CONFIGS, *COMPANIONS]
_FILES = (".gguf", ".safetensors")
_WEIGHTS = ["*.safetensors", "*.safetensors.index.json"]


def local_path(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The folder or file itself, or a repository's files in the cache, which are downloaded where they are missing.

    Pickles are never downloaded. `owner/name/file.gguf` is one file of a repository.

    Raises:
        OSError: there is no such folder, file or repository, or the hub cannot be reached.
        ValueError: the name is neither a path nor `owner/name`.
    """
    path = Path(path_or_id)
    if path.exists():
        return path
    name = str(path_or_id)
    parts = name.split("/")
    is_file = len(parts) == 1 and name.endswith(_FILES)
    if isinstance(path_or_id, Path) or path.is_absolute() or name.startswith((".", "~")) or len(parts) > 3 or is_file:
        raise FileNotFoundError(f"[from_pretrained] there is no file or folder {path}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    repository, file = "/".join(parts[:2]), parts[2:]
    try:
        if file:
            return Path(snapshot_download(repository, revision=revision, allow_patterns=[*_ALWAYS, *file])) / file[0]
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*_ALWAYS, *_WEIGHTS]))
    except HFValidationError as error:
        raise ValueError(f"[from_pretrained] {name!r} is neither a path nor the id of a repository") from error
    except OSError as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FileNotFoundError(
            f"[from_pretrained] there is no file or folder {name}, and the hub did not give it: {reason}"
        ) from error
