"""`TMACQuantizer`, the `HfQuantizer` of tmac. Everything that follows transformers' moving interfaces is in this file.

Loading a low-bit checkpoint: the modules that it quantizes are taken out of the model before transformers loads the
float tensors, and put back, with their weights, afterwards. Loading a float one: transformers hands every weight to
`_quantize_op`, and the low-bit module waits until the loading is over. In between nothing of ours is in the model,
because transformers fills buffers that are not in the file with whatever memory holds, and initializes what it takes
for missing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils import logging

from tmac.formats import tmac_file
from tmac.formats.checkpoint import Checkpoint
from tmac.formats.errors import format_error
from tmac.formats.safetensors_file import Entry, TensorStore, open_file
from tmac.formats.source import Source, refuse_pickles
from tmac.hf.config import TMACConfig
from tmac.hf.modules import Pending, Target, fill, find_targets, hold, own_place
from tmac.hf.saving import describe, state_to_save
from tmac.nn import NormedQuantLinear, PackedModule, QuantExperts, QuantLinear
from tmac.nn.normed_linear import NormedLinear
from tmac.nn.swap import find_experts
from tmac.progress import with_progress
from tmac.quant import calibrated, quantize
from tmac.quant.blocks import BlockSource
from tmac.quant.config import QuantConfig
from tmac.quant.plan import Job, check_weight, make_plan, share
from tmac.spec import Activation

logger = logging.get_logger(__name__)
METHOD = "tmac"
PARTS = ("planes", "trits", "scales", "zeros", "offsets", "super_scales", "super_offsets", "perm")


@dataclass
class Handover:
    """What `tmac.from_pretrained` gives the quantizer that transformers makes.

    Args:
        checkpoint: open, of any format.
        floats: the float tensors that transformers loads; the quantizer may add to them.
        activation: in place of what the specs say.
        rest: what to make of layers that the checkpoint has as floats; None leaves them.
        progress: as everywhere.
    """

    checkpoint: Checkpoint
    floats: MutableMapping[str, Any]
    activation: Activation | None = None
    rest: QuantConfig | None = None
    progress: bool | None = None


_HANDOVER: ContextVar[Handover | None] = ContextVar("tmac_handover", default=None)


@contextmanager
def handing(handover: Handover) -> Iterator[None]:
    """While it lasts, the quantizer that transformers makes takes its weights from `handover`."""
    token = _HANDOVER.set(handover)
    try:
        yield
    finally:
        _HANDOVER.reset(token)


class TMACQuantizer(HfQuantizer):
    """Loads and saves low-bit models, and quantizes float ones while they are loaded."""

    requires_calibration = False
    quantization_config: TMACConfig

    def __init__(self, quantization_config: TMACConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._handover = _HANDOVER.get()
        self._targets: list[Target] = []
        self._jobs: dict[str, tuple[Job, str]] = {}  # a weight's name -> its job, and its name there
        self._arrived: dict[int, tuple[Job, dict[str, Tensor], nn.Module | None]] = {}
        self._ties: dict[str, str] = {}

    def validate_environment(self, *args: Any, device_map: Any = None, **kwargs: Any) -> None:
        devices = set(device_map.values()) if isinstance(device_map, dict) else {device_map} - {None, "auto"}
        others = sorted(str(device) for device in devices if str(device) != "cpu")
        if others:
            raise ValueError(f"[tmac] device_map asks for {', '.join(others)}, but tmac runs on the CPU")

    def update_device_map(self, device_map: Any) -> Any:
        return {"": "cpu"} if device_map == "auto" else device_map

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Any = None, **kwargs: Any) -> Any:
        for file in checkpoint_files or []:
            refuse_pickles(Path(file))
        if not self.pre_quantized:
            self._prepare_to_quantize(model)
            return model
        if self._handover is None:
            checkpoint = _open_files(checkpoint_files, self.quantization_config)
            self._handover = Handover(checkpoint, {})
        checkpoint = self._handover.checkpoint
        places = _places(model, checkpoint, self._handover.floats)
        self._targets = find_targets(model, checkpoint, places)
        self._ignore_own_tensors(model, checkpoint)
        self._take_out(model)
        return model

    def _take_out(self, model: Any) -> None:
        """Puts placeholders where weights are read later, and for what is tied to them."""
        hold(self._targets)
        tied: dict[str, str] = model.all_tied_weights_keys
        waiting = {target.name for target in self._targets}
        for name, source in list(tied.items()):
            module, owner = name.rpartition(".")[0], source.rpartition(".")[0]
            if owner in waiting and module not in waiting:
                self._ties[module] = owner
                model.set_submodule(module, Pending(model.get_submodule(module), keep_bias=True))
            elif module in waiting and owner not in waiting:  # a head of its own beside a float embedding
                _set_untied(model)
            if module in waiting or owner in waiting:
                del tied[name]

    def _ignore_own_tensors(self, model: Any, checkpoint: Checkpoint) -> None:
        """Tells transformers not to report the tensors that it leaves to us."""
        biases = {re.sub(r"\d+", r"\\d+", re.escape(name)) for name, layer in checkpoint.layers.items() if layer.bias}
        patterns = [rf"\.({'|'.join(PARTS)})$"] + [rf"^{name}\.bias$" for name in sorted(biases)]
        model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *patterns}

    def _prepare_to_quantize(self, model: Any) -> None:
        config = self.quantization_config
        saved: dict[str, Any] = {"layers": {}, "tied": {}, "fixed_zero": None, "scale_format": "f16"}
        given = [key for key, default in saved.items() if getattr(config, key) != default]
        if given:
            raise ValueError(f"[TMACConfig] {', '.join(given)} describe a saved model, but this one is to be quantized")
        tied = set(model.all_tied_weights_keys) | set(model.all_tied_weights_keys.values())
        plan = make_plan(model, config.quant_config())
        if not plan:
            logger.warning(f"tmac finds no layer to quantize in {type(model).__name__}: it stays a float model")
        for job in plan:
            weights = {f"{name}.{part}": part for name in job.site.names for part in job.weights()}
            if tied.isdisjoint(weights) and not job.sharing:  # what is tied waits for its weight to be loaded
                self._jobs.update({name: (job, part) for name, part in weights.items()})

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return param_name in self._jobs

    def get_quantize_ops(self) -> Any:
        return _quantize_op(self)

    def quantize_arrived(self, name: str, weight: Tensor, model: Any) -> None:
        """Takes a float weight that transformers has read; the module is made when all of its weights are there."""
        job, part = self._jobs.pop(name)
        check_weight(weight, name)
        _, weights, _ = self._arrived.setdefault(id(job), (job, {}, None))
        weights[part] = weight
        if len(weights) == len(job.weights()):
            self._arrived[id(job)] = (job, {}, job.build(weights))
        parameter = getattr(job.site.module, part)
        parameter._is_hf_initialized = True  # it stays on meta until the module is replaced

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        rest, progress, activation = self._handover_settings()
        for _ in with_progress(fill(self._targets, activation), "packing", progress):
            pass
        for module, owner in self._ties.items():
            self._share(model, module, owner)
        for job, _, layer in self._arrived.values():
            if layer is not None:
                job.put(layer)
        self._arrived, self._jobs = {}, {}
        if rest is not None:
            quantize.run(model, make_plan(model, rest), progress)
        self._handover = None
        attach(model, self)
        return model

    def _handover_settings(self) -> tuple[QuantConfig | None, bool | None, Activation | None]:
        if not self.pre_quantized:
            return self.quantization_config.quant_config(), None, None
        assert self._handover is not None
        return self._handover.rest, self._handover.progress, self._handover.activation

    def _share(self, model: Any, name: str, owner: str) -> None:
        pending = model.get_submodule(name)
        twin: Any = share(pending.original, model.get_submodule(owner))
        if isinstance(twin, QuantLinear) and pending.bias is not None:
            twin._set_bias(pending.bias)
        model.set_submodule(name, twin)
        model.all_tied_weights_keys[f"{name}.weight"] = f"{owner}.weight"

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters can be trained: gradients pass through low-bit layers."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        if getattr(model, "_hf_peft_config_loaded", False):
            return None, {}  # adapters alone are saved
        attach(model, self)
        return state_to_save(model), {}

    def _dequantize(self, model: Any, dtype: Any = None) -> Any:
        return dequantize_(model, dtype)


def attach(model: Any, quantizer: TMACQuantizer | None = None, config: QuantConfig | None = None) -> None:
    """Makes `save_pretrained` write the low-bit layers of a Hugging Face model, however they came into it."""
    quantizer = quantizer or TMACQuantizer(TMACConfig.of(config or QuantConfig()), pre_quantized=True)
    quantizer.quantization_config = describe(model, quantizer.quantization_config)
    model.hf_quantizer = quantizer
    model.config.quantization_config = quantizer.quantization_config
    model.quantization_method = METHOD
    model._weight_conversions = []  # names are saved as the model has them; reversing a conversion would lose tensors


def dequantize_(model: Any, dtype: torch.dtype | str | None) -> Any:
    """Puts the float modules of the model's class back, with the dequantized weights."""
    with torch.device("meta"):
        skeleton = type(model)(_float_config(model.config))
    sites: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, (PackedModule, QuantExperts)) and not any(
            name.startswith(f"{parent}.") for parent in sites
        ):
            sites[name] = module
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    for name, module in sites.items():
        plain = skeleton.get_submodule(name)
        for part, value in _dense(module, plain).items():
            setattr(plain, part, nn.Parameter(value.to(dtype), requires_grad=False))
        for parameter in plain.parameters():
            parameter._is_hf_initialized = True
        for part, buffer in plain.named_buffers():
            setattr(plain, part, torch.empty_like(buffer, device="cpu"))
        model._init_weights(plain)  # constants that transformers keeps in buffers, as Gemma's scale
        if isinstance(module, NormedQuantLinear):
            plain = NormedLinear(plain, module.rms_norm.to(dtype))
        plain.train(module.training)
        model.set_submodule(name, plain)
    model.tie_weights()
    return model


def _dense(module: Any, plain: Any) -> dict[str, Tensor]:
    if isinstance(module, QuantExperts):
        return dict(zip(("gate_up_proj", "down_proj"), module.dequantize(), strict=True))
    weight = module.dequantize()
    parts = {"weight": weight.T.contiguous() if weight.shape != plain.weight.shape else weight}
    if isinstance(module, QuantLinear) and module.bias is not None:
        parts["bias"] = module.bias.detach()
    return parts


def _float_config(config: Any) -> Any:
    plain = type(config).from_dict(
        {key: value for key, value in config.to_dict().items() if key != "quantization_config"}
    )
    plain._attn_implementation = config._attn_implementation
    return plain


def _set_untied(model: Any) -> None:
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _open_files(files: list[str] | None, config: TMACConfig) -> Checkpoint:
    if not files:
        raise ValueError("[tmac] a low-bit model is loaded from files: from_pretrained(folder)")
    entries: dict[str, Entry] = {}
    for file in files:
        if not file.endswith(".safetensors"):
            raise format_error(file, "expected a safetensors file")
        entries.update(open_file(Path(file)).entries)
    folder = Path(files[0]).parent
    settings = config.to_dict()
    for key in ("head_bits", "embedding_bits"):
        settings.pop(key, None)
    return tmac_file.open_checkpoint(
        Source(folder, None, folder / "config.json", settings, TensorStore(folder, entries), ())
    )


def _places(model: Any, checkpoint: Checkpoint, floats: MutableMapping[str, Any]) -> dict[str, tuple[str, int, str]]:
    """Where each layer belongs: (module, expert, projection).

    A name that is not the model's goes through the same renaming as transformers' own weights. What its conversions
    do beside gathering experts is done to floats only: such a layer is handed to transformers dequantized.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    modules = dict(model.named_modules())
    fused = {name for site in find_experts(model) for name in site.names}
    conversions = get_model_conversion_mapping(model)
    renamings = [entry for entry in conversions if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in conversions if isinstance(entry, WeightConverter)]
    known = model.state_dict()
    places = {}
    for name in checkpoint.layers:
        place = own_place(name, modules, fused)
        if place is None:
            key, pattern = rename_source_key(f"{name}.weight", renamings, converters, model.base_model_prefix, known)
            place = own_place(key.removesuffix(".weight"), modules, fused)
            if pattern is not None:
                place = _expert_place(name, key, pattern, converters, fused)
            if place is None and pattern is not None and key in known:
                floats.update(_as_floats(checkpoint, name))
                continue
        if place is None:
            logger.warning(f"{checkpoint.path}: {name} has no place in {type(model).__name__} and is not loaded")
            continue
        places[name] = place
    return places


def _expert_place(
    name: str, key: str, pattern: str, converters: list[Any], fused: set[str]
) -> tuple[str, int, str] | None:
    """`<block>.experts.3.w1`, whose weight transformers gathers into `<block>.experts.gate_up_proj`."""
    module, _, gathered = key.rpartition(".")
    number = re.search(r"\.(\d+)\.[^.]+$", name)
    if module not in fused or number is None:
        return None
    sources = next(entry.source_patterns for entry in converters if pattern in entry.source_patterns)
    parts = ("gate_proj", "up_proj") if gathered == "gate_up_proj" else ("down_proj",)
    return (module, int(number[1]), parts[sources.index(pattern)]) if len(sources) == len(parts) else None


def _as_floats(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    from tmac.hf.floats import LazyTensor

    layer = checkpoint.layers[name]
    logger.warning(f"{checkpoint.path}: {name} is rearranged by transformers, and loaded as a float weight")
    shape = (layer.out_features, layer.in_features)
    floats = {f"{name}.weight": LazyTensor(lambda: torch.from_numpy(layer.read().dequantize()), shape, "F32")}
    if layer.bias:
        floats[f"{name}.bias"] = LazyTensor(lambda: torch.from_numpy(layer.read().bias), shape[:1], "F32")
    return floats


def _quantize_op(quantizer: TMACQuantizer) -> Any:
    from transformers.core_model_loading import ConversionOps

    class Quantize(ConversionOps):
        """Takes the weights that are to be quantized and passes on the others."""

        def convert(self, input_dict: dict[str, Any], *args: Any, missing_keys: Any = None, **kwargs: Any) -> Any:
            passed = {}
            for name, value in input_dict.items():
                weight = value[0] if isinstance(value, list) else value
                if name not in quantizer._jobs:
                    passed[name] = weight
                    continue
                quantizer.quantize_arrived(name, weight, kwargs.get("model"))
                if missing_keys is not None:
                    missing_keys.discard(name)
            return passed

    return Quantize()


def register() -> None:
    """Registers `TMACConfig` and `TMACQuantizer` under "tmac"; a second call changes nothing."""
    from transformers.quantizers import auto

    if METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        auto.register_quantization_config(METHOD)(TMACConfig)
    if METHOD not in auto.AUTO_QUANTIZER_MAPPING:
        auto.register_quantizer(METHOD)(TMACQuantizer)
    if _after_quantize not in quantize.finished:
        quantize.finished.append(_after_quantize)
        calibrated.openers.append(_open_blocks)


def _open_blocks(model: nn.Module) -> BlockSource:
    from tmac.hf.blocks import open_blocks

    return open_blocks(model)


def _after_quantize(model: nn.Module, config: QuantConfig) -> None:
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        attach(model, config=config)


register()
