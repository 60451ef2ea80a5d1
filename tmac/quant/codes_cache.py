"""Codes of matrices on the disk, so that an interrupted search goes on after the last matrix that was finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tmac.codes import Codes
from tmac.files import replacing
from tmac.spec import QuantSpec


@dataclass(frozen=True, eq=False)
class Stored:
    """The codes of a matrix, what they were predicted to cost in nats per token, and who made them."""

    codes: Codes
    loss: float
    recipe: str


class CodesCache:
    """Files of codes in a folder. A damaged one counts as absent.

    Args:
        folder: is made when the first file is written.
        context: anything that the codes depend on beside matrix, spec and recipe; another one finds nothing.
    """

    def __init__(self, folder: Path, context: str) -> None:
        self.folder, self.context = folder, context

    def path(self, name: str, spec: QuantSpec, recipe: str) -> Path:
        """Where the codes of a matrix are."""
        key = digest(self.context, name, spec.to_dict(), recipe)
        return self.folder / f"{name}-{spec.bits}-{key[:16]}.safetensors"

    def get(self, name: str, spec: QuantSpec, recipe: str) -> Stored | None:
        """The codes of a matrix by a recipe, or None."""
        found = read_file(self.path(name, spec, recipe))
        return found.get(name)

    def loss(self, name: str, spec: QuantSpec, recipe: str) -> float | None:
        """What `get` would say they cost, without reading the codes."""
        try:
            with safe_open(self.path(name, spec, recipe), "numpy") as file:
                return float(json.loads((file.metadata() or {})["about"])[name]["loss"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, name: str, spec: QuantSpec, recipe: str, stored: Stored) -> None:
        """Keeps codes; they are on the disk when it returns. `recipe` is what was asked for.

        Raises:
            OSError: the disk is full.
        """
        write_file(self.path(name, spec, recipe), {name: stored})


def digest(*parts: Any) -> str:
    """A hash of plain values, the same in every process."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_file(path: Path, layers: Mapping[str, Stored]) -> None:
    """Writes codes of several matrices into one file, which appears when it is complete."""
    tensors, about = {}, {}
    for name, stored in layers.items():
        tensors.update(stored.codes.to_tensors(f"{name}."))
        about[name] = {
            "spec": stored.codes.spec.to_dict(),
            "in_features": stored.codes.in_features,
            "loss": stored.loss,
            "recipe": stored.recipe,
        }
    write_atomically(path, save(tensors, {"about": json.dumps(about)}))


def read_file(path: Path) -> dict[str, Stored]:
    """The codes in a file; nothing where it is missing or damaged."""
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        return {name: _stored(name, entry, tensors) for name, entry in about.items()}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return {}


def _stored(name: str, entry: Mapping[str, Any], tensors: Mapping[str, Any]) -> Stored:
    spec = QuantSpec.from_dict(entry["spec"])
    codes = Codes.from_tensors(tensors, spec, entry["in_features"], f"{name}.")
    return Stored(codes, float(entry["loss"]), str(entry["recipe"]))


def write_atomically(path: Path, content: bytes) -> None:
    """A file that has its old content or the new one, whenever the process is killed.

    Raises:
        OSError: the disk is full; the old content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)
