"""What every reader gives: a checkpoint whose headers have been read, and its weights one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tmac.codes import Codes
from tmac.spec import QuantSpec

Array = NDArray[Any]
Kind = Literal["linear", "embedding"]
Requantize = Sequence[str] | Literal["all"]  # types without an exact form that may be rounded


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that stays what it is: a norm, a bias of an unquantized layer, a float weight.

    Args:
        name: its name in the Hugging Face model.
        dtype: the name that safetensors uses, "F32", "F16", "BF16", "I64", ...
        shape: rows first.
        nbytes: size in the file.
        read: gives the array; bf16 comes as uint16, because numpy has no such type. Raises FormatError.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Array] = field(repr=False, compare=False)


@dataclass(frozen=True)
class QuantizedLayer:
    """One quantized weight.

    Args:
        name: the module's name in the Hugging Face model, "model.layers.0.mlp.up_proj".
        spec: what the codes mean, as far as the header tells: `read().spec` may say `scale_format="f16"` where the
            file's type is wider than its values.
        out_features, in_features: rows and columns of the weight.
        bias: whether `read()` brings a bias.
        nbytes: size of the layer's tensors in the file.
        read: gives the codes. Raises FormatError.
        kind: "embedding" where the rows are looked up.
        source_type: the file's own name of the type, where one format has many ("Q4_K").
        input_norm_eps: the layer's input first passes an RMSNorm with this epsilon (BitNet's `use_rms_norm`), whose
            weight `[in_features]` is the tensor `<name>.rms_norm.weight`. None: there is none.
        read_tensors: gives rows [begin, end) as the tensors of `tmac.codes.tensor_shapes`, without the bias, where the
            file holds these: there is no detour over codes. The planes or trits are valid until the thread reads
            something else. None where the file does not hold them. Raises FormatError.
        read_rows: gives rows [begin, end) of the codes, without the bias. None where the format has them all or none.
            Raises FormatError.
        read_blocks: gives rows [begin, end) as the blocks of ggml's type `source_type`, u8 `[rows, bytes]`, where the
            core packs these. They are valid until the thread reads something else. Raises FormatError.
        read_bias: gives the bias of a layer that has one and one of the three above. Raises FormatError.
    """

    name: str
    spec: QuantSpec
    out_features: int
    in_features: int
    bias: bool
    nbytes: int
    read: Callable[[], Codes] = field(repr=False, compare=False)
    kind: Kind = "linear"
    source_type: str = ""
    input_norm_eps: float | None = None
    read_tensors: Callable[[int, int], dict[str, Array]] | None = field(default=None, repr=False, compare=False)
    read_rows: Callable[[int, int], Codes] | None = field(default=None, repr=False, compare=False)
    read_blocks: Callable[[int, int], NDArray[np.uint8]] | None = field(default=None, repr=False, compare=False)
    read_bias: Callable[[], NDArray[np.float32]] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Checkpoint:
    """An open checkpoint. Nothing of the weights has been read.

    Args:
        format: "gptq", "awq", "gguf", ...
        path: the file or folder.
        config: the model's `config.json` without `quantization_config`; None where the files say nothing of a model.
        layers: the quantized weights by module name, in the order of the file.
        tensors: everything else by name.
        files: what lies beside the weights and belongs to the model: tokenizer, chat template, generation config.
        tied: names of modules that share another's weight, `{"lm_head": "model.embed_tokens"}`.
        texts: what `files` would be, where the format keeps it inside of its own file: name -> function that makes the
            text of the file, `tokenizer.json` for instance. Raises FormatError.
        errors: the relative L2 error, |new - old| / |old|, of each layer that was rounded because its type has no exact
            form; filled as the layers are read.
    """

    format: str
    path: Path
    config: Mapping[str, Any] | None
    layers: Mapping[str, QuantizedLayer]
    tensors: Mapping[str, StoredTensor]
    files: tuple[Path, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, Callable[[], str]] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights in the files."""
        return sum(item.nbytes for group in (self.layers, self.tensors) for item in group.values())


def to_float32(array: Array, dtype: str) -> NDArray[np.float32]:
    """The values of a `StoredTensor` of any float type, widened (f64 is rounded) to f32.

    Raises:
        ValueError: the type is no float.
    """
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype.kind != "f":
        raise ValueError(f"expected a float tensor, found {dtype}")
    return array.astype(np.float32, copy=False)


def narrowest(values: NDArray[np.float32]) -> Array:
    """The values as f16 where each is exactly an f16, else as they are: the rule for scales, zeros and offsets."""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    exact = bool((half.astype(np.float32) == values).all())
    return half if exact else values


def scale_format_of(scales: Array) -> Literal["f16", "f32"]:
    """`QuantSpec.scale_format` of an array of scales."""
    return "f16" if scales.dtype == np.float16 else "f32"
