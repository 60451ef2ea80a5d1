"""Models of transformers whose low-bit layers are emulated in torch."""

import torch
from quant.emulation import emulated
from rounding import Rounding

from tmac import Codes
from tmac.nn import QuantExperts, QuantLinear


class Emulation:
    """A model of transformers with emulations in the place of its low-bit layers.

    Args:
        model: with `QuantLinear` and `QuantExperts` modules, which are replaced.
    """

    def __init__(self, model):
        self.model = model
        self.phase = "prompt"  # or "decode": whose kernels are emulated
        self.rounding = Rounding()
        self.replace_below(model)
        self.layers = model.get_decoder().layers

    def replace_below(self, module):
        kinds = {QuantLinear: EmulatedLinear, QuantExperts: EmulatedExperts}
        for name, child in list(module.named_children()):
            if type(child) in kinds:
                setattr(module, name, kinds[type(child)](child, self))
            self.replace_below(child)

    def calls_of_layers(self, tokens):
        """How the model calls its decoder layers for tokens `[texts, length]`: arguments, and those with a name."""
        calls = []

        def note(layer, args, named):
            calls.append((args, named))

        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        with torch.no_grad():
            self.model(tokens, use_cache=False)
        for hook in hooks:
            hook.remove()
        return calls

    def run_layer(self, index, call):
        """The hidden states behind a layer, f32 `[texts * length, hidden]`."""
        args, named = call
        with torch.no_grad():
            out = self.layers[index](*args, **named)
        out = out[0] if isinstance(out, tuple) else out
        return out.flatten(0, -2)


class EmulatedLinear(torch.nn.Module):
    """What a `QuantLinear` computes."""

    def __init__(self, layer, emulation):
        super().__init__()
        self.codes = Codes.from_buffer(layer.weight.numpy())
        self.kernels = {"decode": layer.kernel, "prompt": layer.prompt_kernel}
        self.bias = layer.bias
        self.emulation = emulation

    def forward(self, x):
        rows = x.flatten(0, -2)
        y = emulated(rows, self.codes, self.kernels[self.emulation.phase], self.emulation.rounding.of(rows))
        y = y if self.bias is None else y + self.bias.double()
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


class EmulatedExperts(torch.nn.Module):
    """`QuantExperts`, one expert after the other."""

    def __init__(self, layer, emulation):
        super().__init__()
        self.experts = torch.nn.ModuleList(layer.get_submodule(str(index)) for index in range(layer.num_experts))
        self.act_fn = layer.act_fn
        self.rounding = emulation.rounding
        emulation.replace_below(self.experts)

    def forward(self, hidden, chosen, weights):
        out = torch.zeros_like(hidden)
        for index, expert in enumerate(self.experts):
            self.rounding.rows, places = (chosen == index).nonzero(as_tuple=True)
            x = hidden[self.rounding.rows]
            y = expert.down_proj(self.act_fn(expert.gate_proj(x)) * expert.up_proj(x))
            out.index_add_(0, self.rounding.rows, y * weights[self.rounding.rows, places, None])
        self.rounding.rows = None
        return out
