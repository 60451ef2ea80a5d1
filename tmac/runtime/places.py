"""Which tensor of a checkpoint holds which weight of the runtime."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from tmac.formats.checkpoint import Checkpoint, QuantizedLayer, StoredTensor
from tmac.formats.errors import format_error
from tmac.runtime.description import ModelDescription, Weight

FLOATS = ("F32", "F16", "BF16", "F64")


@dataclass(frozen=True)
class Place:
    """One weight and what it is read from: a quantized layer or a tensor.

    Args:
        weight: the runtime's.
        layer: a low-bit matrix.
        tensor: a float one, or a norm, or the stack that the matrix is in.
        bias: of a float matrix.
    """

    weight: Weight
    layer: QuantizedLayer | None = None
    tensor: StoredTensor | None = None
    bias: StoredTensor | None = None

    @property
    def name(self) -> str:
        """The runtime's name of the weight."""
        return self.weight.name

    @property
    def nbytes(self) -> int:
        """What is read for it, or for the whole stack that it is in."""
        entries: Iterable[QuantizedLayer | StoredTensor | None] = (self.layer, self.tensor, self.bias)
        return sum(entry.nbytes for entry in entries if entry is not None)


def find_places(checkpoint: Checkpoint, description: ModelDescription) -> list[Place]:
    """The place of every weight, without the head where it is the embedding.

    Raises:
        FormatError: a tensor is missing, has another shape or type, or belongs to no weight.
    """
    finder = _Finder(checkpoint)
    found = {weight.name: finder.find(weight) for weight in description.weights}
    _tie(checkpoint, description, found)
    places: list[Place] = []
    for name, place in found.items():
        if place is None:
            weight = next(weight for weight in description.weights if weight.name == name)
            raise format_error(
                checkpoint.path,
                f"expected this tensor ({name}), but it is missing",
                f"{weight.sources[0]}.{weight.part}",
            )
        finder.check(place)
        places.append(place)
        places += finder.input_norm(place)
    finder.expect_nothing_more(description.ignored)
    return places


def _tie(checkpoint: Checkpoint, description: ModelDescription, found: dict[str, Place | None]) -> None:
    """Drops a head that the file does not hold because it is the embedding, or the other way round."""
    head, embedding = found["head"], found["embedding"]
    sources = next(weight.sources for weight in description.weights if weight.name == "head")
    if not description.tied and not any(source in checkpoint.tied for source in sources):
        return
    if embedding is None and head is not None:
        found["embedding"] = replace(head, weight=replace(head.weight, name="embedding"))
        del found["head"]
    elif head is None:
        del found["head"]


class _Finder:
    """Finds weights in a checkpoint and remembers what it has found."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.taken: set[str] = set()

    def find(self, weight: Weight) -> Place | None:
        """The first of the weight's sources that is there, else the stack, else None."""
        tensors = self.checkpoint.tensors
        for source in weight.sources:
            layer, tensor = self.checkpoint.layers.get(source), tensors.get(f"{source}.{weight.part}")
            if layer is not None and weight.part == "weight":
                self.taken.add(source)
                return Place(weight, layer)
            if tensor is not None:
                self.taken.add(tensor.name)
                bias = tensors.get(f"{source}.bias") if len(weight.shape) == 2 and weight.bias else None
                if bias is not None:
                    self.taken.add(bias.name)
                return Place(weight, None, tensor, bias)
        for name in weight.stack.tensors if weight.stack else ():
            if name in tensors:
                self.taken.add(name)
                return Place(weight, None, tensors[name])
        return None

    def check(self, place: Place) -> None:
        """Raises FormatError for a shape or type that the weight cannot have."""
        weight, layer, tensor = place.weight, place.layer, place.tensor
        if layer is not None:
            self._expect_shape(layer.name, (layer.out_features, layer.in_features), weight.shape)
            if weight.bias and not layer.bias:
                raise format_error(self.checkpoint.path, "expected a bias, found none", layer.name)
        if tensor is not None:
            stacked = weight.stack is not None and tensor.name in weight.stack.tensors
            self._expect_float(tensor, weight.stack.shape if stacked and weight.stack else weight.shape)
            if len(weight.shape) == 2 and weight.bias:
                owner = tensor.name.removesuffix(".weight")
                if place.bias is None:
                    raise format_error(self.checkpoint.path, "expected a bias, found none", owner)
                self._expect_float(place.bias, weight.shape[:1])

    def input_norm(self, place: Place) -> list[Place]:
        """The norm that the input of a layer passes first, where it has one of its own."""
        layer = place.layer
        if layer is None or layer.input_norm_eps is None:
            return []
        norm = Weight(f"{place.name}.input_norm", (f"{layer.name}.rms_norm",), (layer.in_features,))
        found = self.find(norm)
        if found is None:
            raise format_error(self.checkpoint.path, "expected this tensor", f"{layer.name}.rms_norm.weight")
        self.check(found)
        return [found]

    def expect_nothing_more(self, ignored: Iterable[str]) -> None:
        """Raises FormatError for a tensor that no weight is made of."""
        for group in (self.checkpoint.layers, self.checkpoint.tensors):
            for name in group:
                if name not in self.taken and not any(fnmatchcase(name, pattern) for pattern in ignored):
                    raise format_error(
                        self.checkpoint.path,
                        "expected only tensors of this model, found one without a place in it",
                        name,
                    )

    def _expect_float(self, tensor: StoredTensor, shape: tuple[int, ...]) -> None:
        self._expect_shape(tensor.name, tensor.shape, shape)
        if tensor.dtype not in FLOATS:
            raise format_error(self.checkpoint.path, f"expected {', '.join(FLOATS)}, found {tensor.dtype}", tensor.name)

    def _expect_shape(self, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
        if found != shape:
            raise format_error(self.checkpoint.path, f"expected shape {list(shape)}, found {list(found)}", name)
