"""That a trained ternary model loses nothing here: what is equal bit for bit, and how near the rest is.

Equal in every bit:
- the int32 sums of every layer: our kernels, transformers' own layers and plain int32 arithmetic, on the same integers;
- the int8 activations and the outputs of every layer: our kernels, the layers that were trained, and plain arithmetic;
- the logits of `tmac.from_pretrained` and of the trained model, so the perplexity too;
- the logits of `tmac.Engine` and of benchmarks/ternary/reference.py, whose ternary layers are int32 sums.

Near: transformers divides 127 by the largest activation as torch does, which is rounded twice, and multiplies the
scales in another order; the decoder has its own norms and attention. So their numbers are a few roundings off, and
where an activation lies in the middle of two int8 values that is enough to move it to the other one.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import tmac
from benchmarks.ternary import reference
from benchmarks.ternary.model import TernaryLinear, linears, rounded, ternary
from tmac import Codes, _core
from tmac.formats import open_checkpoint

EPS = 2.0**-24  # of one rounding to f32
# Of an output: ours rounds max / 127, 1 / s, their product and the last one; theirs 127 / max twice, s times it, and
# the quotient.
ROUNDINGS = 8
TIE = 8 * 127 * EPS  # how far from the middle of two integers two ways to compute x * 127 / max may fall apart
NEAR = 1e-3  # of a perplexity: activations that moved change single tokens by about as much, up or down


@dataclass(frozen=True)
class LayerCheck:
    """One layer over the activations that a held-out text gives it.

    Args:
        name: of the layer.
        integers: the int8 activations are equal, but for `ties`.
        sums: the int32 sums are equal.
        outputs: ours are equal.
        ties: activations in the middle of two integers of which transformers takes the other one.
        transformers: how far its outputs are from exact sums of its integers, in roundings.
    """

    name: str
    integers: bool
    sums: bool
    outputs: bool
    ties: int
    transformers: float


@dataclass(frozen=True)
class Perplexity:
    """Of one way to run the model; `relative` is its distance from the trained model's."""

    way: str
    perplexity: float
    relative: float


@dataclass(frozen=True)
class Checks:
    layers: list[LayerCheck]
    logits_of_transformers_path: bool
    logits_of_engine: bool
    perplexities: list[Perplexity]

    def failures(self) -> list[str]:
        """What is not as it should be, in words."""
        found = []
        for layer in self.layers:
            for part in ("integers", "sums", "outputs"):
                if not getattr(layer, part):
                    found.append(f"{layer.name}: the {part} differ")
            if layer.transformers > ROUNDINGS:
                found.append(f"{layer.name}: transformers' outputs are {layer.transformers:.1f} roundings away")
        if not self.logits_of_transformers_path:
            found.append("tmac.from_pretrained: the logits differ from the trained model's")
        if not self.logits_of_engine:
            found.append("tmac.Engine: the logits differ from those of the reference")
        far = (each for each in self.perplexities if not each.relative <= NEAR)
        return found + [f"{each.way}: a perplexity of {each.perplexity}, {each.relative:.1e} off" for each in far]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(model: nn.Module, folder: Path, ids: Tensor, window: int) -> Checks:
    """Runs an exported model in every way.

    Args:
        model: what was exported to `folder`.
        folder: where it is.
        ids: held-out text, i64 `[tokens]`.
        window: tokens of a piece, at most 256, each with a fresh context.
    """
    with torch.compiler.set_stance("force_eager"):  # transformers compiles parts of its layers
        return _check(model.eval(), folder, ids, window)


def _check(model: nn.Module, folder: Path, ids: Tensor, window: int) -> Checks:
    text = ids[:window]
    layers = check_layers(model, folder, text)
    wanted = perplexity(lambda piece: torch_logits(model, piece), ids, window)
    ours = tmac.from_pretrained(folder, dtype=torch.float32)
    theirs = transformers_model(folder)
    with tmac.Engine.from_pretrained(str(folder), cache_type="f32") as engine:
        ways: dict[str, Callable[[Tensor], Tensor]] = {
            "tmac.from_pretrained": lambda piece: torch_logits(ours, piece),
            "tmac.Engine": lambda piece: torch.from_numpy(engine.logits(piece.tolist())),
            "transformers": lambda piece: torch_logits(theirs, piece),
        }
        found = {way: perplexity(logits, ids, window) for way, logits in ways.items()}
        pieces = torch.split(ids, window)
        same_path = all(
            same_bits(torch_logits(ours, piece).numpy(), torch_logits(model, piece).numpy()) for piece in pieces
        )
        same_engine = same_bits(engine.logits(text.tolist()), reference_logits(model, text))
    perplexities = [Perplexity("trained", wanted, 0.0)]
    perplexities += [Perplexity(way, each, abs(each / wanted - 1)) for way, each in found.items()]
    return Checks(layers, same_path, same_engine, perplexities)


def perplexity(logits: Callable[[Tensor], Tensor], ids: Tensor, window: int) -> float:
    """exp of the mean loss of every token but the first of each window, in f64."""
    losses = []
    for piece in torch.split(ids, window):
        if len(piece) > 1:
            losses.append(F.cross_entropy(logits(piece)[:-1].double(), piece[1:], reduction="none"))
    return math.exp(float(torch.cat(losses).mean()))


def same_bits(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and np.array_equal(one.view(np.int32), other.view(np.int32))


def torch_logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids[None], use_cache=False).logits[0]
    return found


def transformers_model(folder: Path) -> nn.Module:
    """The exported model as transformers runs it."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch._inductor's imports warn of torch.jit
        model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def check_layers(model: nn.Module, folder: Path, ids: Tensor) -> list[LayerCheck]:
    """Every layer of the trained model, on the activations that `ids` give it, against the exported one."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, layer in linears(model).items():

        def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            inputs[name] = args[0].flatten(0, -2)

        hooks.append(layer.register_forward_pre_hook(note))
    torch_logits(model, ids)
    for hook in hooks:
        hook.remove()
    stored = open_checkpoint(folder).layers
    theirs = dict(transformers_model(folder).named_modules())
    return [
        check_layer(name, layer, inputs[name], stored[name].read(), theirs[name])
        for name, layer in linears(model).items()
    ]


def check_layer(name: str, layer: TernaryLinear, x: Tensor, codes: Codes, theirs: Any) -> LayerCheck:
    """One layer.

    Args:
        name: of the layer.
        layer: as trained.
        x: f32 `[tokens, k]`.
        codes: as exported.
        theirs: transformers' `BitLinear` with the exported weight.
    """
    values = ternary(layer.weight.detach()).values.numpy().astype(np.int32)
    plain = reference.Ternary(values, np.float32(codes.scales.reshape(-1)[0]))
    wanted, unit = reference.round_to_int8(x.numpy())
    sums = reference.int32_sums(values, wanted)
    ours = _core.linear(x.numpy(), codes.pack().buffer(), None)
    outputs = reference.linear(plain, x.numpy())
    with torch.no_grad():
        trained, output = layer(x).numpy(), theirs(x).numpy()
        their_integers = theirs.activation_quant(x)[0].numpy().astype(np.int32)
        their_sums = _bare(theirs)(x).numpy()
    differ = their_integers != wanted
    apart = np.abs(x.numpy() / unit - (their_integers + wanted) / 2)[differ]  # from the middle
    exact = reference.int32_sums(values, their_integers)
    expected = exact.astype(np.float32) * (plain.scale * unit)
    distance = np.abs(output - expected) / np.maximum(np.abs(expected) * EPS, np.finfo(np.float32).tiny)
    return LayerCheck(
        name,
        np.array_equal(rounded(x).integers.numpy(), wanted) and bool((apart <= TIE).all()),
        np.array_equal(_kernel_sums(codes, wanted), sums) and np.array_equal(their_sums, exact),
        same_bits(ours, outputs) and same_bits(trained, outputs),
        int(differ.sum()),
        float(distance.max()),
    )


def _kernel_sums(codes: Codes, integers: NDArray[np.int32]) -> NDArray[np.float32]:
    """The sums of our kernel, with scales of 1. A token's largest activation is 127, which makes its scale 1 too."""
    spec = codes.spec.replace(scale_format="f32")
    one = Codes(spec, codes.codes, np.ones(codes.scales.shape, np.float32))
    return _core.linear(integers.astype(np.float32), one.pack().buffer(), None)


def _bare(layer: Any) -> Any:
    """Transformers' layer without the division by the scales."""
    bare = copy.copy(layer)
    bare.post_quant_process = lambda sums, *_: sums
    return bare


def reference_logits(model: nn.Module, ids: Tensor) -> NDArray[np.float32]:
    """Of benchmarks/ternary/reference.py over a trained model."""
    settings: Any = model.config
    layers = {}
    for name, layer in linears(model).items():
        values, scale, _ = ternary(layer.weight.detach())
        layers[name] = reference.Ternary(values.numpy().astype(np.int32), np.float32(scale))
    vectors: Mapping[str, NDArray[np.float32]] = {
        name: value.detach().numpy()
        for name, value in model.state_dict().items()
        if name.rpartition(".")[0] not in layers
    }
    return reference.Reference(settings.to_dict(), vectors, layers).logits(ids.numpy())
