"""What the runtime needs to know of a model: its numbers, and where each weight is in a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tmac.runtime.settings import MAX_EXPERTS, MAX_HEAD, MAX_LAYERS, Settings


@dataclass(frozen=True)
class Stack:
    """Where a float matrix lies in a tensor for all experts of a layer.

    Args:
        tensors: names that the tensor may have.
        shape: `[experts, rows, columns]`.
        index: which expert.
        first_row: of the matrix.
    """

    tensors: tuple[str, ...]
    shape: tuple[int, int, int]
    index: int
    first_row: int


@dataclass(frozen=True)
class Weight:
    """One weight of the runtime.

    Args:
        name: the runtime's name, "layers.0.q".
        sources: names that its module may have in the checkpoint, the first that is there holds it.
        shape: `[out_features, in_features]` of a matrix, `[features]` of a norm.
        bias: whether the layer has one.
        part: of the module, "weight" or "bias".
        shift: added to the values, in f32: Gemma's norms are 1 + w.
        exact: a quantized layer is used as its float matrix: what chooses among experts.
        stack: where the matrix is if no module has it.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    bias: bool = False
    part: str = "weight"
    shift: float = 0.0
    exact: bool = False
    stack: Stack | None = None

    def below(self, name: str, sources: Sequence[str]) -> Weight:
        """The weight with `name` and each of `sources` in front of its own."""
        stack = self.stack
        if stack is not None:
            stack = replace(stack, tensors=tuple(f"{source}.{own}" for source in sources for own in stack.tensors))
        found = tuple(f"{source}.{own}" for source in sources for own in self.sources)
        return replace(self, name=f"{name}.{self.name}", sources=found, stack=stack)


@dataclass(frozen=True)
class ModelDescription:
    """A model for `_core.ModelBuilder`.

    Args:
        config: what the builder is made with.
        weights: every weight, the head among them.
        tied: the model says that the head is the embedding.
        ignored: patterns (fnmatch) of tensors that a checkpoint may hold and the runtime has no use for.
    """

    config: dict[str, Any]
    weights: tuple[Weight, ...]
    tied: bool
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sizes:
    """The numbers that shape the weights."""

    vocab: int
    hidden: int
    ffn: int
    layers: int
    heads: int
    key_heads: int
    head: int
    context: int

    @classmethod
    def of(
        cls,
        config: Settings,
        *,
        vocab: int,
        hidden: int,
        ffn: int,
        layers: int,
        heads: int,
        key_heads: int | None,
        context: int,
        head: int | None = None,
    ) -> Sizes:
        """Reads them under Hugging Face's names.

        Args:
            config: the configuration; what follows are the defaults of the family's class.
            vocab: `vocab_size`.
            hidden: `hidden_size`.
            ffn: `intermediate_size`.
            layers: `num_hidden_layers`.
            heads: `num_attention_heads`.
            key_heads: `num_key_value_heads`; None is as many as heads.
            context: `max_position_embeddings`.
            head: `head_dim`; None is hidden / heads.

        Raises:
            ValueError: a number cannot be, or they disagree.
        """
        width, count = config.size("hidden_size", hidden), config.size("num_attention_heads", heads)
        if head is None and not config.has("head_dim") and width % count:
            raise config.error("num_attention_heads", f"expected a divisor of the hidden size, {width}")
        sizes = cls(
            vocab=config.size("vocab_size", vocab),
            hidden=width,
            ffn=config.size("intermediate_size", ffn),
            layers=config.size("num_hidden_layers", layers, MAX_LAYERS + 1),
            heads=count,
            key_heads=config.size("num_key_value_heads", key_heads or count),
            head=config.size("head_dim", head or width // count, MAX_HEAD + 1),
            context=config.size("max_position_embeddings", context),
        )
        if sizes.heads % sizes.key_heads:
            raise config.error("num_key_value_heads", f"expected a divisor of {sizes.heads}, the number of heads")
        return sizes


def norm(name: str, source: str, size: int, shift: float = 0.0, bias: bool = False) -> list[Weight]:
    """A norm's weight, and its bias where it has one."""
    weights = [Weight(name, (source,), (size,), shift=shift)]
    return [*weights, Weight(f"{name}.bias", (source,), (size,), part="bias")] if bias else weights


def attention(sizes: Sizes, bias: bool = False, out_bias: bool | None = None) -> list[Weight]:
    """q, k, v and o as Llama names them; `out_bias` is the bias of o where it differs from the others'."""
    queries, keys = sizes.heads * sizes.head, sizes.key_heads * sizes.head
    return [
        Weight("q", ("self_attn.q_proj",), (queries, sizes.hidden), bias),
        Weight("k", ("self_attn.k_proj",), (keys, sizes.hidden), bias),
        Weight("v", ("self_attn.v_proj",), (keys, sizes.hidden), bias),
        Weight("o", ("self_attn.o_proj",), (sizes.hidden, queries), bias if out_bias is None else out_bias),
    ]


def gated_mlp(sizes: Sizes, bias: bool = False, source: str = "mlp", width: int | None = None) -> list[Weight]:
    """gate, up and down as Llama names them."""
    width = width or sizes.ffn
    return [
        Weight("gate", (f"{source}.gate_proj",), (width, sizes.hidden), bias),
        Weight("up", (f"{source}.up_proj",), (width, sizes.hidden), bias),
        Weight("down", (f"{source}.down_proj",), (sizes.hidden, width), bias),
    ]


def llama_norms(sizes: Sizes, shift: float = 0.0) -> list[Weight]:
    """One norm before the attention and one before the MLP."""
    return [
        *norm("input_norm", "input_layernorm", sizes.hidden, shift),
        *norm("pre_mlp_norm", "post_attention_layernorm", sizes.hidden, shift),
    ]


def head_norms(sizes: Sizes, shift: float = 0.0) -> list[Weight]:
    """Norms of every query and key, before they are rotated."""
    return [
        *norm("q_norm", "self_attn.q_norm", sizes.head, shift),
        *norm("k_norm", "self_attn.k_norm", sizes.head, shift),
    ]


def experts(sizes: Sizes, count: int, width: int, names: Mapping[str, tuple[str, str, str]]) -> list[Weight]:
    """The router and the experts of a layer.

    Args:
        sizes: of the model.
        count: experts in a layer.
        width: rows of gate and up.
        names: modules that may hold the router `<module>.gate` and the experts `<module>.experts.<number>` -> the names
            of gate, up and down there. The first one's `experts.gate_up_proj` and `experts.down_proj` may hold all of
            them as floats, `[experts, 2 * width, hidden]`, gates first, and `[experts, hidden, width]`.
    """
    first = next(iter(names))
    weights = [Weight("router", tuple(f"{module}.gate" for module in names), (count, sizes.hidden), exact=True)]
    shapes = {"gate": (width, sizes.hidden), "up": (width, sizes.hidden), "down": (sizes.hidden, width)}
    for index in range(count):
        for place, (name, shape) in enumerate(shapes.items()):
            sources = tuple(f"{module}.experts.{index}.{parts[place]}" for module, parts in names.items())
            tensor, rows = ("down_proj", shape[0]) if name == "down" else ("gate_up_proj", 2 * width)
            whole = (count, rows, shape[1])
            stack = Stack((f"{first}.experts.{tensor}",), whole, index, width if name == "up" else 0)
            weights.append(Weight(f"experts.{index}.{name}", sources, shape, stack=stack))
    return weights


def sparse_layers(config: Settings, sizes: Sizes, count: int) -> list[bool]:
    """Which layers of a Qwen model choose among experts.

    Raises:
        ValueError: there are more experts in all layers than any model has.
    """
    only, step = set(config.integers("mlp_only_layers", ())), config.size("decoder_sparse_step", 1)
    check_experts(config, "num_experts", sizes, count)
    return [layer not in only and (layer + 1) % step == 0 for layer in range(sizes.layers)]


def check_experts(config: Settings, key: str, sizes: Sizes, count: int) -> None:
    """Raises ValueError for more experts in all layers than any model has."""
    if count * sizes.layers > MAX_EXPERTS:
        raise config.error(key, f"expected at most {MAX_EXPERTS} experts in all layers")


def decoder(
    family: str,
    config: Settings,
    sizes: Sizes,
    block: Callable[[int], Iterable[Weight]],
    *,
    norm_eps: float,
    activation: str,
    rope: list[dict[str, Any]],
    layer_rope: list[int] | None = None,
    windows: list[int] | None = None,
    tied: bool = False,
    top: Iterable[Weight] | None = None,
    layers: Sequence[str] = ("model.layers",),
    ignored: Sequence[str] = (),
    **more: Any,
) -> ModelDescription:
    """A description from its parts.

    Args:
        family: the runtime's name of the block.
        config: of the model.
        sizes: of the model.
        block: number of a layer -> its weights, named within the layer on both sides.
        norm_eps: added to the mean of squares, or the variance.
        activation: the runtime's name.
        rope: entries made by `rope.rope`.
        layer_rope: which entry each layer uses, -1 for none; by default the first.
        windows: of each layer, 0 for none; by default none.
        tied: the class's default of `tie_word_embeddings`.
        top: embedding, final norm and head; by default Llama's.
        layers: names that the list of layers may have in the checkpoint.
        ignored: see `ModelDescription`.
        more: keys of the runtime's configuration that differ from those of a plain Llama.
    """
    weights = list(llama_top(sizes) if top is None else top)
    for layer in range(sizes.layers):
        places = [f"{name}.{layer}" for name in layers]
        weights += [weight.below(f"layers.{layer}", places) for weight in block(layer)]
    content = {
        "family": family,
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.ffn,
        "num_layers": sizes.layers,
        "num_heads": sizes.heads,
        "num_kv_heads": sizes.key_heads,
        "head_dim": sizes.head,
        "norm_eps": norm_eps,
        "activation": activation,
        "attention_scale": sizes.head**-0.5,
        "attention_softcap": 0.0,
        "logit_softcap": 0.0,
        "embedding_scale": 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
        "windows": windows or [0] * sizes.layers,
        "rope": rope,
        "layer_rope": layer_rope or [0] * sizes.layers,
        "parallel_residual": False,
        "num_experts": 0,
        "experts_per_token": 0,
        "normalize_experts": False,
        "moe_intermediate_size": 0,
        "shared_intermediate_size": 0,
        "sparse_layers": [False] * sizes.layers,
        "context_length": int(sizes.context * max(_stretch(entry) for entry in rope)),
    }
    unknown = more.keys() - content.keys()
    if unknown:
        raise TypeError(f"[decoder] the runtime has no keys {sorted(unknown)}")
    is_tied = config.flag("tie_word_embeddings", tied)
    patterns = ("*.rotary_emb.inv_freq", "*.embed_scale", *ignored)
    return ModelDescription({**content, **more}, tuple(weights), is_tied, patterns)


def _stretch(rope: Mapping[str, Any]) -> float:
    """How many times the positions of the model fit into a text: dynamic frequencies are for longer ones."""
    dynamic = rope["dynamic"] or {}
    return max(1.0, float(dynamic.get("factor", 1.0)))


def llama_top(sizes: Sizes, model: Sequence[str] = ("model",), shift: float = 0.0) -> list[Weight]:
    """Embedding, final norm and head as Llama names them, below one of the modules `model`."""
    return [
        Weight("embedding", tuple(f"{name}.embed_tokens" for name in model), (sizes.vocab, sizes.hidden)),
        Weight("final_norm", tuple(f"{name}.norm" for name in model), (sizes.hidden,), shift=shift),
        Weight("head", ("lm_head", "language_model.lm_head"), (sizes.vocab, sizes.hidden)),
    ]
