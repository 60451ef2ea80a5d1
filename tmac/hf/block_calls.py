"""How a model calls its decoder layers: found by letting its own code run with other modules in their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818
    """The last decoder layer was called: what comes after it is not wanted."""


class Calls:
    """What every decoder layer is called with beside the hidden states: masks, positions, ..."""

    def __init__(self) -> None:
        self.first: Tensor | None = None
        self.others: list[tuple[tuple[Any, ...], dict[str, Any]]] = []


class _StandIn(nn.Module):
    """Looks like a decoder layer to the code that owns it."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.__dict__["original"] = original  # not a child: its parameters must not be seen

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["original"], name)


class _StandIns(nn.ModuleList):
    def __getitem__(self, index: Any) -> Any:
        modules = list(self._modules.values())[index]
        return nn.ModuleList(modules) if isinstance(index, slice) else modules


class _Recorder(_StandIn):
    def __init__(self, original: nn.Module, owner: Recorders, last: bool) -> None:
        super().__init__(original)
        self.__dict__["owner"], self.__dict__["last"] = owner, last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, args, kwargs = _hidden(args, kwargs)
        calls = self.__dict__["owner"].calls
        if calls.first is None:
            calls.first = hidden
        calls.others.append((args, kwargs))
        if self.__dict__["last"]:
            raise _Reached
        return hidden


class Recorders(_StandIns):
    """In the place of the decoder layers: notes what each of them is called with."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__(_Recorder(layer, self, layer is layers[-1]) for layer in layers)
        self.calls = Calls()

    def record(self, model: nn.Module, ids: Tensor) -> Calls:
        """Runs `model`, which holds these recorders, up to its last decoder layer."""
        self.calls = Calls()
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
        except _Reached:
            return self.calls
        raise ValueError(f"[open_blocks] {type(model).__name__} does not call its decoder layers")


class _Injector(_StandIn):
    def __init__(self, original: nn.Module, owner: Injectors, last: bool) -> None:
        super().__init__(original)
        self.__dict__["owner"], self.__dict__["last"] = owner, last

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        owner = self.__dict__["owner"]
        hidden = owner.hidden if self.__dict__["last"] else _hidden(args, kwargs)[0]
        return (hidden,) if owner.in_tuples else hidden


class Injectors(_StandIns):
    """In the place of the decoder layers: the last of them gives `hidden`, whatever it is called with."""

    def __init__(self, layers: nn.ModuleList, in_tuples: bool) -> None:
        super().__init__(_Injector(layer, self, layer is layers[-1]) for layer in layers)
        self.hidden: Tensor | None = None
        self.in_tuples = in_tuples

    def __deepcopy__(self, memo: dict[int, Any]) -> Injectors:
        return self


class NoEmbedding(nn.Module):
    """In the place of an embedding whose values do not matter: zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros(*ids.shape, self.width)


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """(hidden states, the other positional arguments, the other keywords) of a call of a decoder layer."""
    if args:
        return args[0], args[1:], kwargs
    kwargs = dict(kwargs)
    return kwargs.pop("hidden_states"), (), kwargs


def on_meta(value: Any) -> Any:
    """The same arguments with tensors on the meta device."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, tuple):
        return tuple(on_meta(each) for each in value)
    if isinstance(value, dict):
        return {key: on_meta(each) for key, each in value.items()}
    return value
