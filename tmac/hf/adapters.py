"""LoRA of PEFT over `QuantLinear`: `LoraConfig(target_modules=[...])` finds low-bit layers as it finds `nn.Linear`."""

from __future__ import annotations

import functools
import warnings
from typing import Any

from peft.tuners.lora.config import LoraConfig

from tmac.nn import QuantLinear

_MARK = "_tmac_layers"


@functools.cache
def _lora_class() -> Any:
    import torch
    from peft.tuners.lora.layer import LoraLayer

    class LoraQuantLinear(torch.nn.Module, LoraLayer):  # type: ignore[misc]
        """`base(x) + scaling * B(A(dropout(x)))` for every active adapter; the low-bit weight is not trained."""

        def __init__(
            self: Any, base_layer: Any, adapter_name: str, config: Any, r: int = 0, lora_alpha: int = 1, **options: Any
        ) -> None:
            if getattr(config, "use_dora", False):
                raise ValueError("[tmac] DoRA needs the float weight: model.dequantize() gives a model that has it")
            if not isinstance(config.init_lora_weights, bool) and config.init_lora_weights != "gaussian":
                raise ValueError(
                    f"[tmac] init_lora_weights={config.init_lora_weights!r} needs the float weight; True and "
                    "'gaussian' do not"
                )
            torch.nn.Module.__init__(self)
            with warnings.catch_warnings():  # PEFT says of every layer type that is not its own: "at your own risk"
                warnings.filterwarnings("ignore", "Unsupported layer type")
                LoraLayer.__init__(self, base_layer)
            self._active_adapter = adapter_name
            self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

        def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            y = self.base_layer(x)
            if self.disable_adapters:
                return y
            for name in self.active_adapters:
                if name in self.lora_A:
                    down, up = self.lora_A[name], self.lora_B[name]
                    update = up(down(self.lora_dropout[name](x.to(down.weight.dtype))))
                    y = y + (update * self.scaling[name]).to(y.dtype)
            return y

        def merge(self, *args: Any, **kwargs: Any) -> None:
            """Refuses: the sum is no low-bit weight."""
            raise ValueError(
                "[tmac] an adapter cannot be merged into a low-bit weight: call dequantize() on the base model, load "
                "the adapter there, and merge"
            )

        def unmerge(self) -> None:
            """Nothing is ever merged."""

        def __repr__(self) -> str:
            return f"lora.{super().__repr__()}"

    return LoraQuantLinear


def register() -> None:
    """Adds `QuantLinear` to the custom modules of every new `LoraConfig`; a second call changes nothing."""
    before = LoraConfig.__post_init__
    if hasattr(before, _MARK):
        return

    @functools.wraps(before)
    def post_init(self: Any) -> None:
        before(self)
        self._register_custom_module({QuantLinear: _lora_class()})

    setattr(post_init, _MARK, True)
    LoraConfig.__post_init__ = post_init


register()
