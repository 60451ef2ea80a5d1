"""Low-bit language models on ordinary CPUs.

`import tmac` loads the compiled core and NumPy only. Names that need torch are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    from tmac import _core
except ImportError as error:
    raise ImportError(
        f"tmac._core, the compiled part of tmac, cannot be imported: {error}. Did you forget to build it? Run "
        "`pip install .` (or `pip install -e .`) in a checkout, and start Python from another folder than the checkout "
        "if you installed without -e."
    ) from error

from tmac import _post_import
from tmac._core import UnsupportedSpecError, cpu_features, kernels
from tmac.codes import Codes, FormatError, round_to_nearest
from tmac.spec import QuantSpec
from tmac.threads import get_num_threads, set_num_threads

if TYPE_CHECKING:
    from tmac import hf, nn, quant
    from tmac.hf.assistant import assistant
    from tmac.hf.auto import auto_quantize
    from tmac.hf.config import TMACConfig
    from tmac.hf.native_attachment import attach, detach
    from tmac.hf.native_generate import native_generate
    from tmac.hf.pretrained import from_pretrained, load_tokenizer
    from tmac.quant.config import QuantConfig
    from tmac.quant.quantize import quantize_
    from tmac.runtime.engine import Engine
    from tmac.tuner import tune

__version__: str = _core.__version__

# name -> the module that defines it; None: the name is itself a module
_LAZY: dict[str, str | None] = {
    "hf": None,
    "nn": None,
    "quant": None,
    "Engine": "tmac.runtime.engine",
    "TMACConfig": "tmac.hf.config",
    "assistant": "tmac.hf.assistant",
    "auto_quantize": "tmac.hf.auto",
    "attach": "tmac.hf.native_attachment",
    "detach": "tmac.hf.native_attachment",
    "native_generate": "tmac.hf.native_generate",
    "from_pretrained": "tmac.hf.pretrained",
    "load_tokenizer": "tmac.hf.pretrained",
    "QuantConfig": "tmac.quant.config",
    "quantize_": "tmac.quant.quantize",
    "tune": "tmac.tuner",
}

__all__ = [
    "Codes",
    "Engine",
    "FormatError",
    "QuantConfig",
    "QuantSpec",
    "TMACConfig",
    "UnsupportedSpecError",
    "__version__",
    "assistant",
    "attach",
    "auto_quantize",
    "cpu_features",
    "detach",
    "from_pretrained",
    "get_num_threads",
    "hf",
    "kernels",
    "load_tokenizer",
    "native_generate",
    "nn",
    "quant",
    "quantize_",
    "round_to_nearest",
    "set_num_threads",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tmac' has no attribute {name!r}")
    source = _LAZY[name]
    try:
        module = importlib.import_module(source or f"tmac.{name}")
    except ImportError as error:
        extra = {"torch": "torch", "transformers": "hf", "tokenizers": "engine", "jinja2": "engine"}.get(
            error.name or ""
        )
        if extra is None:
            raise
        raise ImportError(f"tmac.{name} needs {error.name}: pip install 'tmac-cpu[{extra}]'") from error
    value = getattr(module, name) if source else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | _LAZY.keys())


_post_import.install()
