"""What a model family's description in a GGUF file consists of; the families themselves are in gguf_families."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tmac.formats.checkpoint import Kind
from tmac.formats.errors import format_error
from tmac.formats.gguf import GgufFile
from tmac.formats.gguf_shards import Tensors

MAX_LAYERS = 1024
MAX_EXPERTS = 1 << 16  # in all layers together: a Python object each


@dataclass(frozen=True)
class Part:
    """One kind of tensor.

    Args:
        target: its name in the Hugging Face model, below the layer. A stack of experts has `{}` for the number of one.
        shape: the names of its sizes in the Hugging Face model, rows first; of one expert for a stack.
        kind: "linear" and "embedding" become layers where their type is a quantized one; "plain" stays a tensor.
        optional: a model may lack it.
        rows: the order of its rows, a key of `gguf_rows.ORDERS`; empty where it is Hugging Face's.
        shift: what the converter added to every value.
        stack: the file has one tensor for all experts of a layer.
    """

    target: str
    shape: tuple[str, ...]
    kind: Kind | str = "linear"
    optional: bool = False
    rows: str = ""
    shift: float = 0.0
    stack: bool = False


@dataclass(frozen=True)
class Family:
    """The models of one `general.architecture`.

    Args:
        architecture, model_type: what `config.json` says.
        top: parts outside of the layers, by the name in the file.
        block: parts of each layer, by the name in the file without `blk.N.`.
        config: the keys of `config.json` that only this family has.
        prefix: of the layers' names in the Hugging Face model.
        constants: tensors that the configuration is made from.
        embedding: the module of the embedding.
    """

    architecture: str
    model_type: str
    top: Mapping[str, Part]
    block: Mapping[str, Part]
    config: Callable[[Model], dict[str, Any]]
    prefix: str = "model.layers"
    constants: tuple[str, ...] = ()
    embedding: str = "model.embed_tokens"


@dataclass(frozen=True)
class Model:
    """The numbers of a model in a file, compared with its tensors.

    Args:
        file: the file with the metadata.
        tensors: all tensors, of all shards.
        sizes: name -> number, what the shapes of `Part` refer to.
    """

    file: GgufFile
    tensors: Tensors
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def tied(self) -> bool:
        """Whether the output head is the embedding."""
        return "output.weight" not in self.tensors

    def key(self, name: str) -> str:
        """The metadata key of a number of the architecture."""
        return f"{self.file.architecture}.{name}"

    def has(self, name: str) -> bool:
        """Whether the file says a number."""
        return self.key(name) in self.file.metadata

    def positive(self, name: str, default: int | None = None) -> int:
        """A positive integer; raises FormatError for another one, or where it is missing without a default."""
        value = self.file.get(self.key(name), int, default)
        if not 0 < value < 2**31:
            raise format_error(self.file.path, f"expected a positive number, found {value}", self.key(name))
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive, finite float; raises as `positive`."""
        value = self.file.get(self.key(name), float, default)
        if not 0 < value < math.inf:
            raise format_error(self.file.path, f"expected a positive number, found {value}", self.key(name))
        return value

    def matrix(self, name: str) -> tuple[int, int]:
        """The shape of a matrix whose data is known to lie in the file; raises FormatError for anything else."""
        file, info = self.tensors.find(name)
        file.known_type(info)
        if len(info.shape) != 2:
            raise format_error(file.path, f"expected a matrix, found shape {info.shape}", name)
        return info.shape[0], info.shape[1]

    def error(self, name: str, message: str) -> Exception:
        """A FormatError about a metadata key of the architecture."""
        return format_error(self.file.path, message, self.key(name))


def measure(file: GgufFile, tensors: Tensors) -> Model:
    """Reads the sizes that every family has.

    Raises:
        FormatError: they are missing, not positive, or disagree with each other or with the embedding.
    """
    model = Model(file, tensors)
    vocab, hidden = model.matrix("token_embd.weight")
    if model.positive("embedding_length") != hidden:
        raise model.error("embedding_length", f"expected {hidden}, the columns of token_embd.weight")
    heads = model.positive("attention.head_count")
    key_heads = model.positive("attention.head_count_kv", heads)
    if not model.has("attention.key_length") and hidden % heads:
        raise model.error("attention.head_count", f"expected a divisor of {hidden}, found {heads}")
    head = model.positive("attention.key_length", hidden // heads)
    if model.positive("attention.value_length", head) != head:
        raise model.error("attention.value_length", f"expected {head}, as attention.key_length")
    if head % 2 or heads % key_heads:
        message = f"expected heads of an even size, in groups, found {heads} and {key_heads} of size {head}"
        raise model.error("attention.head_count_kv", message)
    model.sizes.update(vocab=vocab, hidden=hidden, heads=heads, key_heads=key_heads, head=head, one=1)
    model.sizes.update(q=heads * head, kv=key_heads * head, qkv=(heads + 2 * key_heads) * head)
    model.sizes.update(layers=_layers(model), experts=_experts(model))
    ffn = model.positive("feed_forward_length")
    model.sizes.update(ffn=ffn, gate_up=2 * ffn)
    return model


def _layers(model: Model) -> int:
    """The number of layers, no more than the file has tensors for."""
    layers = model.positive("block_count")
    if layers > min(len(model.tensors), MAX_LAYERS):
        message = f"expected the tensors of {layers} layers, found {len(model.tensors)} tensors"
        raise model.error("block_count", message)
    return layers


def _experts(model: Model) -> int:
    if model.file.metadata.get(model.key("expert_count"), 0) == 0:
        return 0
    experts = model.positive("expert_count")
    if experts * model.positive("block_count") > MAX_EXPERTS:
        raise model.error(
            "expert_count", f"expected at most {MAX_EXPERTS} experts in all layers, found {experts} in one"
        )
    return experts
