"""Bits, group size and symmetry, as configurations of GPTQ, AWQ and AutoRound say them for all and for some layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tmac.formats.errors import format_error
from tmac.formats.name_pattern import NamePattern
from tmac.formats.source import Source

NOT_QUANTIZED = 16  # bits of an override that leaves a layer as it is


@dataclass(frozen=True)
class Numbers:
    """What the configuration says of a layer's codes.

    Args:
        bits: of a code.
        group_size: inputs that share a scale; -1 is all of them.
        sym: the configuration promises that every zero is `2^(bits-1)`.
    """

    bits: int
    group_size: int
    sym: bool


NumbersOf = Callable[[str], Numbers]


def read_numbers(source: Source, values: Mapping[str, Any], base: Numbers | None, where: str = "") -> Numbers:
    """`bits`, `group_size` and `sym` (also under their AWQ names) of a configuration or of an override of `base`.

    Raises:
        FormatError: a value has another type or range.
    """

    def value(names: tuple[str, ...], kind: type, default: Any) -> Any:
        name = next((name for name in names if values.get(name) is not None), names[0])
        found = values.get(name)
        found = default if found is None else found
        if type(found) is not kind:
            raise format_error(source.config_path, f"expected {kind.__name__}, found {found!r}", where + name)
        return found

    bits = value(("bits", "w_bit"), int, base and base.bits)
    group_size = value(("group_size", "q_group_size"), int, base.group_size if base else 128)
    sym = value(("sym",), bool, base.sym if base else True)
    if values.get("sym") is None and values.get("zero_point") is not None:
        sym = not value(("zero_point",), bool, None)
    if not 2 <= bits <= 8:
        raise format_error(source.config_path, f"expected 2 to 8, found {bits}", f"{where}bits")
    if group_size != -1 and not 1 <= group_size < 2**31:
        raise format_error(source.config_path, f"expected -1 or at least 1, found {group_size}", f"{where}group_size")
    return Numbers(bits, group_size, sym)


def dynamic_numbers(source: Source, default: Numbers) -> NumbersOf:
    """gptqmodel's `dynamic`: the first pattern that a module's name begins with says how the module differs.

    "+:pattern" or a bare pattern: it has these numbers. "-:pattern": it is not quantized, so a `qweight` is an error.

    Raises:
        FormatError: an entry is not of this form; later, for a name that should not be quantized.
    """
    rules: list[tuple[NamePattern, Numbers | None]] = []
    for key, values in source.setting("dynamic", dict, {}).items():
        pattern = _pattern(source, key[2:] if key.startswith(("+:", "-:")) else key, "dynamic")
        rules.append((pattern, None if key.startswith("-:") else _override(source, values, default, f"dynamic.{key}")))
    return _lookup(source, {}, rules, default, "dynamic", NamePattern.starts)


def extra_numbers(source: Source, default: Numbers) -> NumbersOf:
    """AutoRound's `extra_config`: a module's own entry, else the first pattern that is found in its name.

    Raises:
        FormatError: an entry is not of this form; later, for a name that should not be quantized.
    """
    own: dict[str, Numbers | None] = {}
    rules: list[tuple[NamePattern, Numbers | None]] = []
    for key, values in source.setting("extra_config", dict, {}).items():
        numbers = _override(source, values, default, f"extra_config.{key}")
        if f"{key}.qweight" in source.store or f"{key}.weight" in source.store:
            own[key] = numbers
        elif values:
            rules.append((_pattern(source, key, "extra_config"), numbers))
    return _lookup(source, own, rules, default, "extra_config", NamePattern.found_in)


def _override(source: Source, values: Any, default: Numbers, where: str) -> Numbers | None:
    if not isinstance(values, dict):
        raise format_error(source.config_path, f"expected an object, found {values!r}", where)
    bits = values.get("bits")
    if type(bits) is int and bits >= NOT_QUANTIZED:
        return None
    return read_numbers(source, values, default, f"{where}.")


def _pattern(source: Source, text: str, where: str) -> NamePattern:
    try:
        return NamePattern(text)
    except ValueError as error:
        raise format_error(source.config_path, f"expected a pattern of names ({error})", where) from error


def _lookup(
    source: Source,
    own: Mapping[str, Numbers | None],
    rules: list[tuple[NamePattern, Numbers | None]],
    default: Numbers,
    where: str,
    matches: Callable[[NamePattern, str], bool],
) -> NumbersOf:
    def numbers_of(name: str) -> Numbers:
        try:
            match = next((numbers for pattern, numbers in rules if matches(pattern, name)), default)
        except ValueError as error:
            raise format_error(source.config_path, str(error), where) from error
        numbers = own.get(name, match)
        if numbers is None:
            message = f"expected a float weight, because {where} leaves this module as it is, found a qweight"
            raise format_error(source.config_path, message, name)
        return numbers

    return numbers_of
