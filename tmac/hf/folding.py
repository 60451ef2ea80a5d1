"""Factors of channels, put into a layer and taken out of the one before: a float model computes the same with them.

AWQ (arXiv 2306.00978) wants the columns of a weight multiplied by factors before they are rounded. Where the input of
the layer comes straight out of a norm or of another linear layer, that one can divide its outputs by them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

# Norms of a decoder layer that folding knows: what feeds attention and what feeds the MLP.
_NORMS = {
    frozenset({"input_layernorm", "post_attention_layernorm"}): ("input_layernorm", "post_attention_layernorm"),
    frozenset(
        {"input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"}
    ): ("input_layernorm", "pre_feedforward_layernorm"),
}
_ATTENTION = ("self_attn", "attention")
_QKV = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"}, {"query_key_value", "dense"})
_MLP = (
    {"gate_proj", "up_proj", "down_proj"},
    {"gate_up_proj", "down_proj"},
    {"dense_h_to_4h", "dense_4h_to_h"},
    {"fc1", "fc2"},
)
_OUTPUTS = ("o_proj", "dense", "down_proj", "dense_4h_to_h", "fc2")
_HEAD_NORMS = ("q_norm", "k_norm")  # of queries and keys: nothing to do with values; others take factors away


@dataclass(frozen=True)
class FoldSite:
    """Linear layers that share an input, and the module it comes from.

    Args:
        linears: name -> layer, all with as many columns.
        producer: a norm with a weight per channel, or a linear layer.
        rows: of a linear producer: those that make the input, i64 `[channels]`; channel j of the input is row
            `rows[j]`, and a row may make several channels.
        one: what the norm adds to its weight before it multiplies, 0 or 1 (Gemma).
    """

    linears: dict[str, nn.Linear]
    producer: nn.Module
    rows: Tensor | None = None
    one: float = 0.0

    def tie(self, magnitude: Tensor) -> Tensor:
        """Makes the magnitudes `[channels]` equal, as their root mean square, whose channels come from one row and so
        share a factor: keys and values may serve several heads."""
        if self.rows is None:
            return magnitude
        counts = torch.bincount(self.rows)
        sums = torch.zeros(len(counts), dtype=magnitude.dtype).index_add_(0, self.rows, magnitude**2)
        return (sums / counts).sqrt()[self.rows]

    @torch.no_grad()
    def fold_(self, scales: Tensor) -> None:
        """Multiplies the columns of the layers by `scales`, f32 `[channels]`, and divides what makes them, in place.

        Raises:
            ValueError: the scales have another shape, are not above 0 and finite, or differ where they have to be tied.
        """
        columns = next(iter(self.linears.values())).in_features
        if tuple(scales.shape) != (columns,) or not bool(((scales > 0) & scales.isfinite()).all()):
            raise ValueError(f"[fold] expected {columns} scales above 0, got {list(scales.shape)}: {scales}")
        if self.rows is not None:
            of_rows = torch.ones(int(self.rows.max()) + 1).scatter_(0, self.rows, scales.float())
            if not torch.equal(of_rows[self.rows], scales.float()):
                raise ValueError("[fold] channels that come from one row have different scales")
        for linear in self.linears.values():
            _multiply_(linear.weight, scales)
        self._divide_(scales)

    def _divide_(self, scales: Tensor) -> None:
        weight, bias = self.producer.weight, getattr(self.producer, "bias", None)
        assert isinstance(weight, Tensor)
        if self.rows is None:
            weight.copy_((weight.double() + self.one) / scales.double() - self.one)
            if isinstance(bias, Tensor):
                _multiply_(bias, 1 / scales.double())
            return
        factors = torch.ones(len(weight), dtype=torch.float64).scatter_(0, self.rows, 1 / scales.double())
        _multiply_(weight, factors[:, None])
        if isinstance(bias, Tensor):
            _multiply_(bias, factors)


def fold_sites(model: nn.Module) -> Iterator[FoldSite]:
    """The places of a model where factors can be folded, found by the names and shapes of the modules of its decoder
    layers: norm to queries, keys and values; norm to gate and up; values to the output of attention; up to down.

    A layer may be in two sites, with its columns in one and its rows in the other. What folding does not know (experts,
    a norm inside of attention, attention and MLP behind one norm) has no sites, nor have layers that share a weight.
    """
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for name, block in model.named_modules():
        for site in _sites_of_block(f"{name}." if name else "", block):
            modules = (site.producer, *site.linears.values())
            if all(uses[id(parameter)] == 1 for module in modules for parameter in module.parameters()):
                yield site


def _sites_of_block(name: str, block: nn.Module) -> Iterator[FoldSite]:
    children = dict(block.named_children())
    norms = _NORMS.get(frozenset(child for child in children if "norm" in child))
    attention_name = next((child for child in _ATTENTION if child in children), None)
    if norms is None or attention_name is None or "mlp" not in children:
        return
    attention, mlp = children[attention_name], children["mlp"]
    parts = (
        (norms[0], f"{name}{attention_name}.", attention, _QKV, _values_to_output),
        (norms[1], f"{name}mlp.", mlp, _MLP, _up_to_down),
    )
    for norm_name, prefix, part, known, inner in parts:
        linears = _known_linears(part, known)
        if linears is None:
            continue
        inputs = {prefix + child: linear for child, linear in linears.items() if child not in _OUTPUTS}
        one = _one_of(children[norm_name], next(iter(inputs.values())).in_features)
        if one is not None:
            yield FoldSite(inputs, children[norm_name], one=one)
        site = inner(prefix, part, linears)
        if site is not None:
            yield site


def _known_linears(part: nn.Module, known: tuple[set[str], ...]) -> dict[str, nn.Linear] | None:
    """The linear layers of attention or an MLP; None where there is anything else with a weight, or
    a norm of something else than queries and keys."""
    found: dict[str, nn.Linear] = {}
    for child, module in part.named_children():
        if isinstance(module, nn.Linear):
            found[child] = module
        elif child not in _HEAD_NORMS and ("norm" in child or next(module.parameters(), None) is not None):
            return None
    own = next(part.parameters(recurse=False), None)
    return found if set(found) in known and own is None else None


def _values_to_output(prefix: str, attention: nn.Module, linears: dict[str, nn.Linear]) -> FoldSite | None:
    output_name = "o_proj" if "o_proj" in linears else "dense"
    output = linears[output_name]
    head_dim = getattr(attention, "head_dim", None) or getattr(attention, "head_size", None)
    if not isinstance(head_dim, int) or output.in_features % head_dim:
        return None
    heads = output.in_features // head_dim
    producer = linears.get("v_proj") or linears.get("qkv_proj") or linears["query_key_value"]
    dims = torch.arange(head_dim)
    if "query_key_value" in linears:  # a head's query, key and value, then the next head's
        if producer.out_features != 3 * output.in_features:
            return None
        rows = torch.arange(heads)[:, None] * 3 * head_dim + 2 * head_dim + dims
    else:
        fused = producer.out_features - output.in_features if "qkv_proj" in linears else 2 * producer.out_features
        key_heads = fused // (2 * head_dim)
        if key_heads < 1 or fused != 2 * key_heads * head_dim or heads % key_heads:
            return None
        first = producer.out_features - key_heads * head_dim
        of_heads = torch.arange(heads) // (heads // key_heads)
        rows = first + of_heads[:, None] * head_dim + dims
    return FoldSite({prefix + output_name: output}, producer, rows.flatten())


def _up_to_down(prefix: str, mlp: nn.Module, linears: dict[str, nn.Linear]) -> FoldSite | None:
    """Only where up is multiplied by an activated gate: an activation in between does not let factors through."""
    producer = linears.get("up_proj") or linears.get("gate_up_proj")
    down = linears.get("down_proj")
    if producer is None or down is None:
        return None
    first = producer.out_features - down.in_features
    if first != (0 if "up_proj" in linears else down.in_features):
        return None
    return FoldSite({prefix + "down_proj": down}, producer, first + torch.arange(down.in_features))


@torch.no_grad()
def _one_of(norm: nn.Module, channels: int) -> float | None:
    """What a norm adds to its weight, seen from what it does; None for a module that is no such norm."""
    weight = getattr(norm, "weight", None)
    names = {name for name, _ in norm.named_parameters()}
    if not isinstance(weight, Tensor) or weight.shape != (channels,) or not names <= {"weight", "bias"}:
        return None
    probe = torch.linspace(-1, 2, channels).to(weight)[None]

    def output(value: float) -> Tensor:
        parameters = {"weight": torch.full_like(weight, value)}
        if "bias" in names:
            parameters["bias"] = torch.zeros_like(weight)
        result: Tensor = torch.func.functional_call(norm, parameters, (probe,))
        return result.float()

    still, once, twice = output(0.0), output(1.0), output(2.0)
    step = once - still
    if not bool(step.any()) or not torch.allclose(twice - once, step, rtol=1e-2, atol=1e-3):
        return None
    for one in (0.0, 1.0):
        if torch.allclose(still, one * step, rtol=1e-2, atol=1e-3):
            return one
    return None


def _multiply_(parameter: Tensor, factors: Tensor) -> None:
    parameter.copy_(parameter.double() * factors.double())


def fold_awq_(model: nn.Module, scales_of: Callable[[FoldSite], Tensor | None]) -> int:
    """Folds the factors that `scales_of` finds for each site, in the order of the model; None leaves a site as it is.

    The float model computes the same afterwards, and only the inputs of a site's own layers are divided by its factors:
    statistics gathered once are enough for all sites (`tmac.quant.methods.awq.scaled_statistics`).

    Returns:
        how many sites were folded.
    """
    folded = 0
    for site in fold_sites(model):
        scales = scales_of(site)
        if scales is not None:
            site.fold_(scales)
            folded += 1
    return folded
