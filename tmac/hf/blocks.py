"""`open_blocks`: a float causal language model as blocks that need not fit into memory together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tmac.formats import open_checkpoint
from tmac.formats.checkpoint import Checkpoint
from tmac.formats.errors import format_error
from tmac.hf.block_calls import Calls, Injectors, NoEmbedding, Recorders, on_meta
from tmac.hf.float_weights import CheckpointWeights, FloatWeights, MemoryWeights
from tmac.hf.model_class import class_of, concrete_class, model_config
from tmac.nn.normed_linear import InputNorm, NormedLinear
from tmac.nn.swap import find_linears
from tmac.quant.blocks import BlockSource
from tmac.runtime.hub import local_path

_BEGIN_TOKENS = 4096


def open_blocks(model_or_path: Any, *, progress: bool | None = None) -> BlockSource:
    """The decoder layers of a causal language model, one at a time, and its output head as the last block.

    Weights are f32. Of a checkpoint they are read when a block is entered and freed when it is left; those of a
    quantized one are dequantized. A model in memory keeps its weights; what is not f32 is widened block by block.

    Args:
        model_or_path: a folder, a file (safetensors or GGUF), the id of a repository on the hub, a checkpoint of
            `tmac.formats.open_checkpoint`, or a causal language model of transformers in memory, which must not be
            changed while its blocks are in use.
        progress: of the fingerprint, which is taken when it is first asked for; True or False; None shows a bar on a
            terminal when it takes over two seconds.

    Returns:
        the blocks. `left_out` are names of modules in them that have matrices but are no linear layers: gathered
        experts, for instance.

    Raises:
        FormatError: the files are damaged, of an unsupported format, or do not fit the model.
        ValueError: this is no causal language model of transformers.
        OSError: a file cannot be opened, or the repository cannot be reached.

    Example:
        >>> blocks = open_blocks("Qwen2.5-0.5B-Instruct")
    """
    if isinstance(model_or_path, nn.Module):
        _check_model(model_or_path)
        weights: FloatWeights = MemoryWeights(model_or_path)
        return Blocks(_skeleton_of(model_or_path), weights, progress)
    checkpoint = model_or_path
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(local_path(model_or_path))
    model = _empty_model(checkpoint)
    return Blocks(model, CheckpointWeights(checkpoint, model), progress)


class Blocks:
    """See `tmac.quant.blocks.BlockSource` and `open_blocks`.

    Args:
        model: with parameters on the meta device, and buffers that no file holds in memory.
        weights: its parameters.
        progress: of the fingerprint.
    """

    def __init__(self, model: Any, weights: FloatWeights, progress: bool | None = None) -> None:
        self._model, self._weights, self._progress = model.eval(), weights, progress
        self._prefix, self._layers = _decoder_layers(model)
        self._head: Any = model.get_output_embeddings()
        self._embedding: Any = model.get_input_embeddings()
        self._configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        tensors = [*model.named_parameters(), *model.named_buffers()]
        self._names = {id(tensor): name for name, tensor in tensors if tensor.is_meta}
        self._head_name = next(name for name, module in model.named_modules() if module is self._head)
        self._in_tuples = False
        self._orders: dict[int, list[str]] = {}
        self._recorded: dict[tuple[int, int], Calls] = {}
        self._recorders = Recorders(self._layers)
        with torch.no_grad():
            self._front: Any = self._filled(model, skip=(self._embedding, self._head), layers=self._recorders)
        self._front.set_input_embeddings(self._no_embedding())
        self.layers(0)  # says whether decoder layers give tuples
        self.left_out = self._find_left_out()

    @property
    def fingerprint(self) -> str:
        """See `BlockSource`: SHA-256 of the configuration and all weights."""
        if not hasattr(self, "_fingerprint"):
            self._fingerprint = self._weights.digest(self._progress)
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._layers) + 1

    def layers(self, index: int) -> Sequence[str]:
        """See `BlockSource`."""
        if index not in self._orders:
            self._orders[index] = self._order(index)
        return tuple(self._orders[index])

    @contextmanager
    def block(self, index: int) -> Iterator[nn.Module]:
        """See `BlockSource`. What is done to the module is gone when it is left."""
        with torch.no_grad():
            if index < len(self._layers):
                module = self._filled(self._layers[index])
            else:
                injectors = Injectors(self._layers, self._in_tuples)
                module = self._filled(self._model, skip=(self._embedding,), layers=injectors)
                module.__dict__["injectors"] = injectors
                module.set_input_embeddings(self._no_embedding())
        own = [each for each in module.parameters() if each.dim() > 1] if self._weights.owned() else []
        try:
            yield module
        finally:
            for parameter in own:
                parameter.data = torch.empty(0)

    def linears(self, index: int, module: nn.Module) -> dict[str, nn.Linear]:
        """See `BlockSource`."""
        start = len(self._block_prefix(index))
        found = {name: module.get_submodule(name[start:]) for name in self.layers(index)}
        return {name: layer for name, layer in found.items() if isinstance(layer, nn.Linear)}

    def begin(self, ids: Tensor) -> Tensor:
        """See `BlockSource`."""
        front = self._front
        stub = front.get_input_embeddings()
        rows = max(1, _BEGIN_TOKENS // ids.shape[1])
        try:
            with torch.no_grad():
                front.set_input_embeddings(self._filled(self._embedding))
            parts = []
            for part in torch.split(ids, rows):
                first = self._recorders.record(front, part).first
                assert first is not None
                parts.append(first.float())
            return torch.cat(parts)
        finally:
            front.set_input_embeddings(stub)

    def run(self, index: int, module: nn.Module, hidden: Tensor) -> Tensor:
        """See `BlockSource`."""
        if index == len(self._layers):
            ids = torch.zeros(hidden.shape[:2], dtype=torch.int64)
            injectors = module.__dict__["injectors"]
            injectors.hidden = hidden
            try:
                logits: Tensor = module(input_ids=ids, use_cache=False).logits
            finally:
                injectors.hidden = None
            return logits
        args, kwargs = self._calls(hidden.shape[0], hidden.shape[1]).others[index]
        output = module(hidden, *args, **kwargs)
        self._in_tuples = isinstance(output, tuple)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def _calls(self, batch: int, tokens: int) -> Calls:
        shape = (batch, tokens)
        if shape not in self._recorded:
            if len(self._recorded) >= 8:
                self._recorded.clear()  # of a text in windows there are two
            self._recorded[shape] = self._recorders.record(self._front, torch.zeros(shape, dtype=torch.int64))
        return self._recorded[shape]

    def _block_prefix(self, index: int) -> str:
        return f"{self._prefix}.{index}." if index < len(self._layers) else ""

    def _no_embedding(self) -> NoEmbedding:
        return NoEmbedding(self._embedding.weight.shape[1])

    def _filled(self, module: Any, skip: Sequence[nn.Module] = (), layers: nn.ModuleList | None = None) -> Any:
        """A copy with its weights, but not those that only modules of `skip` hold.

        `layers` takes the place of the decoder layers.
        """
        memo: dict[int, Any] = dict(self._configs)
        if layers is not None:
            memo[id(self._layers)] = layers
        wanted = {}
        left = {id(each) for each in skip} | ({id(self._layers)} if layers is not None else set())
        for child in _modules_but(module, left):
            for tensor in (*child._parameters.values(), *child._buffers.values()):
                if tensor is not None and tensor.is_meta:
                    wanted[self._names[id(tensor)]] = tensor
        values = self._weights.read(list(wanted))
        for name, tensor in wanted.items():
            value = values[name]
            memo[id(tensor)] = nn.Parameter(value, False) if isinstance(tensor, nn.Parameter) else value
        return copy.deepcopy(module, memo)

    def _order(self, index: int) -> list[str]:
        """Names of the linear layers of a block as its code calls them, where that can be found without weights."""
        if index == len(self._layers):
            return [self._head_name] if isinstance(self._head, nn.Linear) else []
        block, prefix = self._layers[index], self._block_prefix(index)
        linears = {id(site.module): prefix + site.name for site in find_linears(block)}
        called: list[str] = []
        module = copy.deepcopy(block, dict(self._configs)).to("meta")
        hooks = [
            site.module.register_forward_pre_hook(_noting(called, prefix + site.name)) for site in find_linears(module)
        ]
        args, kwargs = on_meta(self._calls(1, 2).others[index])
        try:
            with torch.no_grad():
                output = module(torch.empty(1, 2, self._width(), device="meta"), *args, **kwargs)
            self._in_tuples = isinstance(output, tuple)
        except (RuntimeError, NotImplementedError):  # what routes tokens to experts needs their values
            called.clear()
        for hook in hooks:
            hook.remove()
        return list(dict.fromkeys([*called, *linears.values()]))

    def _width(self) -> int:
        first = self._calls(1, 2).first
        assert first is not None
        return int(first.shape[-1])

    def _find_left_out(self) -> tuple[str, ...]:
        found = []
        for index, block in enumerate(self._layers):
            for name, module in block.named_modules():
                if any(each.dim() > 1 for each in module.parameters(recurse=False)) and not isinstance(
                    module, nn.Linear
                ):
                    found.append(self._block_prefix(index) + name)
        return tuple(found) if isinstance(self._head, nn.Linear) else (*found, self._head_name)


def _noting(called: list[str], name: str) -> Any:
    return lambda module, inputs: called.append(name)


def _modules_but(module: nn.Module, left: set[int]) -> Iterator[nn.Module]:
    """`module` and what is below it, without what is in those whose ids are `left`."""
    if id(module) not in left:
        yield module
        for child in module.children():
            yield from _modules_but(child, left)


def _check_model(model: Any) -> None:
    if not callable(getattr(model, "get_input_embeddings", None)) or not hasattr(model, "config"):
        raise ValueError(
            f"[open_blocks] expected a causal language model of transformers, found {type(model).__name__}"
        )


def _decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The list of decoder layers and its name."""
    _check_model(model)
    if model.get_output_embeddings() is None:
        raise ValueError(f"[open_blocks] expected a causal language model, but {type(model).__name__} has no head")
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    decoder: Any = model.get_decoder() if callable(getattr(model, "get_decoder", None)) else model
    lists = [each for each in decoder.modules() if isinstance(each, nn.ModuleList) and len(each) == count]
    if not lists:
        raise ValueError(f"[open_blocks] {type(model).__name__} has no list of its {count} decoder layers")
    return next(name for name, module in model.named_modules() if module is lists[0]), lists[0]


def _skeleton_of(model: nn.Module) -> nn.Module:
    """A copy of a model without its parameters; what it computes and had rounded is computed in f32."""
    memo: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty(each.shape, device="meta"), requires_grad=False)
        for each in model.parameters()
    }
    memo |= {id(each): each.float() for each in model.buffers() if each.is_floating_point()}
    skeleton = copy.deepcopy(model, memo)
    for module, twin in zip(model.modules(), skeleton.modules(), strict=True):
        rounded = [name for name in module._non_persistent_buffers_set if _is_narrow(module._buffers[name])]
        _compute_buffers(skeleton, twin, rounded)
    return skeleton


def _is_narrow(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16)


def _compute_buffers(model: Any, module: nn.Module, names: Sequence[str]) -> None:
    """Gives buffers that no file holds, rotary frequencies for instance, the values that the model's class does."""
    for name in names:
        module._buffers[name] = torch.empty_like(module.get_buffer(name), device="cpu")
    if names:
        model._init_weights(module)


def _empty_model(checkpoint: Checkpoint) -> Any:
    """The model of a checkpoint on the meta device; buffers that are computed are in memory."""
    config = model_config(checkpoint)
    model_class = concrete_class(class_of(checkpoint, config), checkpoint, config)
    heads = [name for name in checkpoint.layers if name.rpartition(".")[2] in ("lm_head", "embed_out")]
    if any(name not in checkpoint.tied for name in heads):
        config.tie_word_embeddings = False  # a quantized head of its own
    with torch.device("meta"):
        model = model_class(config)
    for name, layer in checkpoint.layers.items():
        if layer.input_norm_eps is not None:
            with torch.device("meta"):
                norm = InputNorm(layer.in_features, layer.input_norm_eps)
            try:
                model.set_submodule(name, NormedLinear(model.get_submodule(name), norm))
            except AttributeError as error:
                raise format_error(checkpoint.path, f"expected this layer in {model_class.__name__}", name) from error
    model.tie_weights()
    for module in model.modules():
        computed = [name for name, each in module._buffers.items() if each is not None and each.is_meta]
        _compute_buffers(model, module, [name for name in computed if name in module._non_persistent_buffers_set])
    return model
