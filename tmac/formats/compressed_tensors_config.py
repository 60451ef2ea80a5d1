"""The `quantization_config` of compressed-tensors: which scheme each layer has (`config_groups`, `targets`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tmac.codes import FormatError
from tmac.formats.errors import format_error
from tmac.formats.module_names import is_embedding
from tmac.formats.name_pattern import NamePattern
from tmac.formats.source import Source

STRATEGIES = ("group", "channel", "tensor")
LAYOUTS = ("pack-quantized", "int-quantized", "naive-quantized")
FIRST_STRADDLING_VERSION = (0, 18)


@dataclass(frozen=True)
class Scheme:
    """How the layers of one config group are stored.

    Args:
        layout: "pack-quantized" has `weight_packed`, the others an int8 `weight`.
        bits: 1 to 8.
        strategy: what has one scale: a "group" of columns, a "channel" (row), or the whole "tensor".
        group_size: columns that share a scale, -1 for the whole row.
        symmetric: whether the zero is 0.
    """

    layout: str
    bits: int
    strategy: str
    group_size: int
    symmetric: bool


class Config:
    """`quantization_config`, checked for what is no matter of a single layer.

    Raises:
        FormatError: activations or the cache are quantized, the weights are sparse or transformed, or a value has
            another type than it should.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        groups = source.setting("config_groups", dict)
        if not groups:
            raise self._error("config_groups", "expected at least one group")
        self.groups: dict[str, Mapping[str, Any]] = {}
        for key, group in groups.items():
            if not isinstance(group, dict):
                raise self._error(f"config_groups.{key}", f"expected a scheme, found {group!r}")
            self.groups[key] = group
        self._check_settings()
        self.targets = self._targets()

    def scheme(self, name: str) -> Scheme:
        """The scheme of a layer. Raises FormatError where no group describes it, or describes what we cannot read."""
        group = self._group(name)
        where = f"config_groups.{group}.weights"
        layout = self.groups[group].get("format") or self.source.setting("format", str)
        if layout not in LAYOUTS:
            wanted = " or ".join(LAYOUTS)
            raise self._error(f"config_groups.{group}.format", f"expected {wanted} for {name}, found {layout!r}")
        weights = self.groups[group].get("weights")
        if not isinstance(weights, dict):
            raise self._error(where, f"expected how {name} is quantized, found {weights!r}")
        return self._weights(where, layout, weights)

    @property
    def straddle(self) -> bool:
        """Whether the version that wrote the file lets codes straddle words (where the shapes do not tell)."""
        version = re.match(r"(\d{1,9})\.(\d{1,9})", self.source.setting("version", str, ""))
        return version is None or (int(version[1]), int(version[2])) >= FIRST_STRADDLING_VERSION

    def _check_settings(self) -> None:
        for key, group in self.groups.items():
            for side in ("input_activations", "output_activations"):
                if group.get(side) is not None:
                    found = f"found {side} of {_described(group[side])}"
                    raise self._error(f"config_groups.{key}.{side}", f"expected weights alone to be quantized, {found}")
        sparsity = self.source.setting("sparsity_config", dict, {})
        if sparsity.get("format", "dense") != "dense":
            raise self._error("sparsity_config.format", f"expected dense weights, found {sparsity['format']!r}")
        if self.source.setting("transform_config", dict, {}).get("config_groups"):
            raise self._error("transform_config", "expected weights that are not transformed, found transforms")
        if self.source.setting("kv_cache_scheme", dict, {}):
            found = _described(self.source.quantization["kv_cache_scheme"])
            message = f"expected a cache that is not quantized, found {found}: without this key the weights are read"
            raise self._error("kv_cache_scheme", message)

    def _targets(self) -> list[tuple[str, str]]:
        """(target, group), names before patterns, as the format orders them; a later group replaces an earlier one."""
        found: dict[str, str] = {}
        for key, group in self.groups.items():
            targets = group.get("targets")
            if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
                raise self._error(f"config_groups.{key}.targets", f"expected a list of names, found {targets!r}")
            found.update(dict.fromkeys(targets, key))
        return sorted(found.items(), key=lambda item: ("re:" in item[0], item[0]))

    def _group(self, name: str) -> str:
        """A layer's own name comes before patterns, these before its class."""
        for target, group in self.targets:
            if target == name or (target.startswith("re:") and self._matches(target[3:], name)):
                return group
        classes = dict(self.targets)
        for known in ("Embedding",) if is_embedding(name) else ("Linear", "LinearBase"):
            if known in classes:
                return classes[known]
        if len(self.groups) == 1:
            return next(iter(self.groups))
        raise self._error("config_groups", f"expected a group for {name}, whose weight is quantized, found none")

    def _matches(self, pattern: str, name: str) -> bool:
        try:
            return NamePattern(pattern).starts(name)
        except ValueError as error:
            raise self._error("config_groups", str(error)) from error

    def _weights(self, where: str, layout: str, weights: Mapping[str, Any]) -> Scheme:
        kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
        if kind != "int" or type(bits) is not int or not 1 <= bits <= 8:
            raise self._error(where, f"expected integers of 1 to 8 bits, found {_described(weights)}")
        group_size = weights.get("group_size")
        if group_size is not None and (type(group_size) is not int or not -1 <= group_size < 2**31):
            raise self._error(f"{where}.group_size", f"expected a number of columns or -1, found {group_size!r}")
        strategy = weights.get("strategy")
        if strategy is None:
            strategy = "tensor" if group_size is None else "group" if group_size > 0 else "channel"
        if strategy not in STRATEGIES:
            raise self._error(f"{where}.strategy", f"expected {' or '.join(STRATEGIES)}, found {strategy!r}")
        columns = -1
        if strategy == "group":
            if group_size is None or group_size < 1:
                raise self._error(f"{where}.group_size", f"expected a number of columns, found {group_size!r}")
            columns = group_size
        symmetric = weights.get("symmetric", True)
        if type(symmetric) is not bool:
            raise self._error(f"{where}.symmetric", f"expected true or false, found {symmetric!r}")
        if weights.get("dynamic"):
            raise self._error(f"{where}.dynamic", "expected stored scales, found dynamic ones")
        return Scheme(layout, bits, strategy, columns, symmetric)

    def _error(self, key: str, message: str) -> FormatError:
        return format_error(self.source.config_path, message, f"quantization_config.{key}")


def _described(arguments: Any) -> str:
    """The arguments of a quantizer in words: "8 bits (float, dynamic, strategy token)"."""
    if not isinstance(arguments, dict):
        return repr(arguments)
    dynamic = "dynamic" if arguments.get("dynamic") else "static"
    bits, kind = arguments.get("num_bits", 8), arguments.get("type", "int")
    return f"{bits} bits ({kind}, {dynamic}, strategy {arguments.get('strategy')})"
