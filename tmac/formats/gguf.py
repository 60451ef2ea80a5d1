"""GGUF files: metadata, and tensors one at a time, as blocks or as float32.

The header is read here, because the gguf package trusts the counts in a file and refuses a whole file for one tensor of
a type that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tmac.formats.errors import format_error
from tmac.formats.gguf_arrays import NumberArray, StringArray
from tmac.formats.gguf_floats import dequantizer
from tmac.formats.gguf_header import TensorInfo, read_header
from tmac.formats.gguf_types import GgmlType
from tmac.formats.regular_file import open_regular

CHUNK_ELEMENTS = 1 << 18
Value = TypeVar("Value")


class GgufFile:
    """An open GGUF file.

    Args:
        path: the file. Its header is read and checked at once; the data of a tensor when it is asked for.

    Raises:
        FormatError: not a GGUF file of version 2 or 3, or a damaged one.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.version: int = header.version
        self.metadata: Mapping[str, Any] = header.metadata
        self.tensors: Mapping[str, TensorInfo] = header.tensors

    @property
    def architecture(self) -> str:
        """ggml's name of the model family, `llama` for instance."""
        return self.get("general.architecture", str)

    def get(self, key: str, kind: type[Value], default: Value | None = None) -> Value:
        """A metadata value of a type (an int is a valid float).

        Raises:
            FormatError: the key is missing and has no default, or holds another type.
        """
        value = self.metadata.get(key, default)
        if value is None:
            raise format_error(self.path, "expected this metadata key, but it is missing", key)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise format_error(self.path, f"expected {kind.__name__}, found {type(value).__name__}", key)
        return value

    def strings(self, key: str) -> Sequence[str]:
        """An array of strings.

        Raises:
            FormatError: the key is missing, or holds something else.
        """
        value = self.metadata.get(key)
        if not isinstance(value, (StringArray, list)) or not all(isinstance(item, str) for item in value):
            raise format_error(self.path, "expected a list of strings", key)
        return value

    def numbers(self, key: str) -> NDArray[Any]:
        """An array of numbers or bools.

        Raises:
            FormatError: the key is missing, or holds something else.
        """
        value = self.metadata.get(key)
        if isinstance(value, NumberArray):
            return value.values
        raise format_error(self.path, "expected a list of numbers", key)

    def info(self, name: str) -> TensorInfo:
        """Shape and type of a tensor.

        Raises:
            FormatError: there is no such tensor.
        """
        if name not in self.tensors:
            raise format_error(self.path, f"expected this tensor, but it is not one of the {len(self.tensors)}", name)
        return self.tensors[name]

    def blocks(self, info: TensorInfo, first: int = 0, count: int | None = None) -> Iterator[NDArray[np.uint8]]:
        """The bytes of `count` blocks from `first` on (all by default), u8 `[blocks, block_bytes]`, in pieces that fit
        into the cache.

        Raises:
            FormatError: the type is not known, or the file became shorter.
        """
        kind = self.known_type(info)
        if count is None:
            count = info.num_elements // kind.block - first
        step = max(1, CHUNK_ELEMENTS // kind.block)
        with open_regular(self.path) as file:
            file.seek(info.offset + first * kind.block_bytes)
            for start in range(0, count, step):
                piece = np.empty((min(step, count - start), kind.block_bytes), np.uint8)
                self._fill(file, info, piece)
                yield piece

    def read_blocks(self, info: TensorInfo, first: int, out: NDArray[np.uint8]) -> None:
        """Fills a contiguous array with blocks from `first` on. Raises as `blocks`."""
        kind = self.known_type(info)
        with open_regular(self.path) as file:
            file.seek(info.offset + first * kind.block_bytes)
            self._fill(file, info, out)

    def _fill(self, file: BufferedReader, info: TensorInfo, out: NDArray[np.uint8]) -> None:
        if file.readinto(out.data) != out.nbytes:
            raise format_error(self.path, "the file became shorter while it was read", info.name)

    def tail(self, info: TensorInfo) -> bytes:
        """The bytes behind the blocks of a tensor. Raises as `blocks`."""
        kind = self.known_type(info)
        with open_regular(self.path) as file:
            file.seek(info.offset + kind.nbytes(info.shape) - kind.tail)
            data = file.read(kind.tail)
        if len(data) != kind.tail:
            raise format_error(self.path, "the file became shorter while it was read", info.name)
        return data

    def known_type(self, info: TensorInfo) -> GgmlType:
        """The type of a tensor; raises FormatError where it is not known."""
        if info.type is None:
            raise format_error(self.path, f"expected a type of ggml, found {info.type_name}", info.name)
        return info.type

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor in float32, in the order of the file's rows.

        Raises:
            FormatError: there is no such tensor, or its type cannot be dequantized.
        """
        info = self.info(name)
        out: NDArray[np.float32] = np.empty(info.shape, np.float32)
        flat, start = out.reshape(-1), 0
        for values in self.floats(info):
            flat[start : start + len(values)] = values
            start += len(values)
        return out

    def floats(self, info: TensorInfo, first: int = 0, count: int | None = None) -> Iterator[NDArray[np.float32]]:
        """As `blocks`, dequantized: f32 `[elements]` in pieces.

        Raises:
            FormatError: the type is not known, or nothing that we know dequantizes it.
            ImportError: the gguf package is missing, and the type needs it.
        """
        kind = self.known_type(info)
        dequantize = dequantizer(self.path, info, self.tail(info) if kind.tail else b"")
        for piece in self.blocks(info, first, count):
            with np.errstate(all="ignore"):  # a damaged scale may be Inf or NaN: the values are passed on as they are
                yield dequantize(piece).reshape(-1)


def unpermute_rows(weight: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undoes llama.cpp's order of the rows of q_proj and k_proj in `llama` files: rotary pairs lie side by side there
    and half a head apart in Hugging Face models (convert_hf_to_gguf.py, LlamaModel.permute)."""
    rows = weight.shape[0]
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(weight.shape))


LLAMA_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
LLAMA_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def llama_name(name: str) -> str | None:
    """The Hugging Face name of a tensor of a `llama` file; None for one that such a model does not have."""
    if name in LLAMA_TOP_NAMES:
        return LLAMA_TOP_NAMES[name]
    match = re.fullmatch(r"blk\.([0-9]{1,9})\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in LLAMA_NAMES:
        return None
    return f"model.layers.{int(match[1])}.{LLAMA_NAMES[match[2]]}.{match[3]}"


def llama_tensors(
    file: GgufFile, on_tensor: Callable[[str], None] | None = None
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """(Hugging Face name, float32 array) of a `llama` file, one tensor at a time, rows in Hugging Face's order.

    Args:
        file: a file whose architecture is `llama`.
        on_tensor: called with each name after it is read, for a progress bar.

    Raises:
        FormatError: a tensor that such a model does not have, or one that cannot be read.
    """
    heads = file.get("llama.attention.head_count", int)
    key_heads = file.get("llama.attention.head_count_kv", int, heads)
    for name in file.tensors:
        target = llama_name(name)
        if target is None:
            raise format_error(file.path, "expected only the tensors of a plain llama model, found this one", name)
        array = file.read(name)
        count = heads if ".q_proj." in target else key_heads if ".k_proj." in target else 0
        if count:
            if array.shape[0] % (2 * count):
                raise format_error(
                    file.path, f"expected rows for {count} heads of an even size, found {array.shape}", name
                )
            array = unpermute_rows(array, count)
        yield target, array
        if on_tensor is not None:
            on_tensor(name)
