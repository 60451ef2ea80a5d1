"""`quantize_`: a float model becomes a low-bit one in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from tmac import _core
from tmac.nn import QuantLinear
from tmac.progress import with_progress
from tmac.quant.calibrated import CalibratedRounding, calibrated_rounding
from tmac.quant.config import QuantConfig
from tmac.quant.plan import Filter, Job, check_weight, make_plan, output_heads

Model = TypeVar("Model", bound=nn.Module)

# Called with every model that `quantize_` has changed; `tmac.hf` adds the one that lets such a model be saved.
finished: list[Callable[[nn.Module, QuantConfig], None]] = []


def quantize_(
    model: Model,
    config: QuantConfig | None = None,
    filter_fn: Filter | None = None,
    progress: bool | None = None,
    *,
    method: str = "rtn",
    calibration: Any = None,
) -> Model:
    """Replaces every `nn.Linear` below `model` by a `tmac.nn.QuantLinear`, in place.

    All weights are checked before the first layer is replaced, so that a refusal leaves the model as it was. Layers
    are then quantized one after the other and each float weight is let go at once: the most memory in use is the
    model and one more layer.

    Mixtures of experts with fused weights as in Mixtral and Qwen-MoE become `tmac.nn.QuantExperts`; the layers
    beside them that choose among the experts (`gate`, `router`, `shared_expert_gate`) stay float.

    The output head (`model.get_output_embeddings()`) stays as it is unless `config.head_bits` is given. A head that
    shares its weight with the input embedding is then untied, and the embedding stays float. `config.embedding_bits`
    quantizes the input embedding; a head that is tied to it then shares its bytes, unless `head_bits` is another
    number.

    Args:
        model: any module; `model` itself must not be the layer.
        config: what to make; None is `QuantConfig()`.
        filter_fn: `filter_fn(module, name)` -> whether to replace this one, asked besides `config`.
        progress: True or False; None shows a bar on a terminal when it takes over two seconds.
        method: how codes are chosen, a name in `tmac.quant.methods.RECIPES`: "rtn", "gptq", "hqq", ... Tables and
            fused experts are rounded to nearest, whatever it is.
        calibration: token ids, int64 `[tokens]` or `[windows, tokens]`, that a causal language model of transformers
            reads first for statistics of its layers' inputs. "gptq" and "awq" need them, "rtn" uses them.

    Returns:
        `model`.

    Raises:
        ValueError: a weight holds NaN, Inf or numbers that f16 scales cannot reach, or is on the meta device; the
            message names the module. There is no such method, or it needs `calibration`.
        UnsupportedSpecError: no kernel serves the spec.
    """
    config = QuantConfig() if config is None else config
    if isinstance(model, nn.Linear):
        raise ValueError("[quantize_] the model is itself an nn.Linear: use tmac.nn.QuantLinear.from_linear")
    with calibrated_rounding(model, method, calibration, progress) as rounding:
        run(model, make_plan(model, config, filter_fn), progress, rounding)
    for listener in finished:
        listener(model, config)
    return model


def run(
    model: nn.Module, jobs: list[Job], progress: bool | None = None, rounding: CalibratedRounding | None = None
) -> None:
    """Does the jobs of a plan, after all of their weights were checked; raises like `quantize_`."""
    heads = output_heads(model)
    for spec in {job.spec for job in jobs}:
        _core.select_kernel(spec)
    for job in jobs:
        for weight in job.weights().values():
            check_weight(weight, job.site.name)
    for _ in with_progress(range(len(jobs)), "quantizing", progress):
        _replace(jobs.pop(0), heads, rounding)


def _replace(job: Job, heads: dict[int, list[nn.Module]], rounding: CalibratedRounding | None) -> None:
    owners = heads.get(id(job.site.module), [])
    try:
        if rounding is not None and job.kind == "linear":
            weight = job.weights()["weight"]
            layer: nn.Module = QuantLinear.from_codes(rounding.codes(job.site.names, weight, job.spec))
        else:
            layer = job.build(job.weights())
    except ValueError as error:
        raise ValueError(f"[quantize_] {job.site.name}: {error}") from error
    job.put(layer)
    for owner in owners:
        untie(owner, layer)


def untie(owner: nn.Module, head: nn.Module) -> None:
    """Tells a Hugging Face model that its head has a weight of its own, so that nothing ties it again."""
    config: Any = getattr(owner, "config", None)
    if getattr(config, "tie_word_embeddings", False):
        config.tie_word_embeddings = False
    tied = getattr(owner, "all_tied_weights_keys", None)
    if isinstance(tied, dict):
        names = {f"{name}.weight" for name, module in owner.named_modules() if module is head}
        for name in names & tied.keys():
            del tied[name]
