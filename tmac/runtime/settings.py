"""The numbers of a Hugging Face configuration, with the defaults of its class, checked one at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Hugging Face's names of activations -> those of the runtime
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
MAX_LAYERS = 1024
MAX_EXPERTS = 1 << 16  # in all layers together
MAX_HEAD = 1 << 12
MAX_SIZE = 1 << 31
LAYER_TYPES = {"full_attention": False, "attention": False, "sliding_attention": True}


@dataclass(frozen=True)
class Settings:
    """`config.json` of a model. A key that is missing or null has the default that its class in transformers has.

    Args:
        values: the object in the file.
    """

    values: Mapping[str, Any]

    def error(self, key: str, message: str) -> ValueError:
        """What every getter raises: it names the key and what was found."""
        found = str(self.values.get(key))
        return ValueError(f"{key}: {message}, found {found if len(found) <= 80 else found[:80] + '...'}")

    def has(self, key: str) -> bool:
        """Whether the file gives the key a value."""
        return self.values.get(key) is not None

    def size(self, key: str, default: int | None = None, limit: int = MAX_SIZE) -> int:
        """A positive integer below `limit`. Raises ValueError for anything else, or where it has no default."""
        value = self.values[key] if self.has(key) else default
        if type(value) is not int or not 0 < value < limit:
            raise self.error(key, f"expected a positive number below {limit}")
        return value

    def optional_size(self, key: str, default: int | None) -> int | None:
        """As `size`, but null stays None."""
        if key in self.values:
            return self.size(key) if self.has(key) else None
        return default

    def number(self, key: str, default: float) -> float:
        """A finite number. Raises ValueError."""
        value = self.values[key] if self.has(key) else default
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self.error(key, "expected a finite number")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        """A finite number above 0. Raises ValueError."""
        value = self.number(key, default)
        if value <= 0:
            raise self.error(key, "expected a number above 0")
        return value

    def optional_positive(self, key: str, default: float | None) -> float:
        """As `positive`; null, or a default of None, is 0."""
        if default is None and not self.has(key):
            return 0.0
        return self.positive(key, default or 0.0) if self.has(key) or key not in self.values else 0.0

    def flag(self, key: str, default: bool) -> bool:
        """True or False. Raises ValueError."""
        value = self.values[key] if self.has(key) else default
        if type(value) is not bool:
            raise self.error(key, "expected true or false")
        return value

    def integers(self, key: str, default: Sequence[int]) -> list[int]:
        """A list of integers. Raises ValueError."""
        values = self.values[key] if self.has(key) else list(default)
        if not isinstance(values, list) or any(type(value) is not int for value in values):
            raise self.error(key, "expected a list of integers")
        return values

    def numbers(self, key: str) -> list[float]:
        """A list of finite numbers. Raises ValueError."""
        values = self.values.get(key)
        if not isinstance(values, list) or any(type(value) not in (int, float) for value in values):
            raise self.error(key, "expected a list of numbers")
        if not all(map(math.isfinite, values)):
            raise self.error(key, "expected finite numbers")
        return [float(value) for value in values]

    def part(self, key: str) -> Settings:
        """An object inside of the file, empty where there is none. Raises ValueError."""
        value = self.values[key] if self.has(key) else {}
        if not isinstance(value, Mapping):
            raise self.error(key, "expected an object")
        return Settings(value)

    def refuse(self, key: str, allowed: Any, why: str) -> None:
        """Raises ValueError where the key has a value other than `allowed`."""
        if self.has(key) and self.values[key] != allowed:
            raise self.error(key, f"expected {allowed!r}: {why}")

    def activation(self, key: str, default: str) -> str:
        """The runtime's name of an activation. Raises ValueError for one that it does not have."""
        name = self.values[key] if self.has(key) else default
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise self.error(key, f"expected one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def layer_types(self, default: Sequence[bool]) -> list[bool]:
        """Whether each layer has a sliding window: `layer_types`, else the default. Raises ValueError."""
        if not self.has("layer_types"):
            return list(default)
        names = self.values["layer_types"]
        if not isinstance(names, list) or len(names) != len(default):
            raise self.error("layer_types", f"expected a list of {len(default)} names")
        if any(not isinstance(name, str) or name not in LAYER_TYPES for name in names):
            raise self.error("layer_types", f"expected {' or '.join(LAYER_TYPES)}")
        return [LAYER_TYPES[name] for name in names]

    def windows(self, sliding: Sequence[bool], size: int | None) -> list[int]:
        """The window of each layer, 0 where there is none. Raises ValueError where a sliding layer has no size."""
        if any(sliding) and size is None:
            raise self.error("layer_types", "expected no sliding_attention without a sliding_window")
        return [(size or 0) if each else 0 for each in sliding]

    @property
    def stored_in_bf16(self) -> bool:
        """Whether the model's own type is bfloat16."""
        name = self.values.get("dtype") or self.values.get("torch_dtype")
        return name in ("bfloat16", "torch.bfloat16")
