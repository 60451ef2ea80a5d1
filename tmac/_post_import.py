"""Registers tmac with transformers and PEFT: at once where they are loaded, else right after they are.

Only the standard library is imported here, so that `import tmac` stays light.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# module of theirs -> module of ours, whose `register()` is called once theirs is loaded
REGISTRATIONS = {
    "transformers.quantizers.auto": "tmac.hf.quantizer",
    "peft.tuners.lora.config": "tmac.hf.adapters",
}


def install() -> None:
    """Runs the registrations now or when their module is imported; a second call changes nothing."""
    for module in REGISTRATIONS.keys() & sys.modules.keys():
        _register(module)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register(module: str) -> None:
    """A package that is too old or too new for tmac must stay importable: what is missing is said, and no more."""
    ours = REGISTRATIONS[module]
    half_loaded = sys.modules.get(ours)
    if half_loaded is not None and not hasattr(half_loaded, "register"):
        return  # it is what imports theirs at this moment, and registers itself when it is complete
    try:
        importlib.import_module(ours).register()
    except ImportError as error:
        package = module.partition(".")[0]
        warnings.warn(f"tmac cannot register with {package}: {error}", RuntimeWarning, stacklevel=2)


class _Finder(MetaPathFinder):
    """Finds the modules with the other finders, and adds a step to their loaders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTRATIONS:
            return None
        for finder in sys.meta_path:
            find = None if isinstance(finder, _Finder) else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(Loader):
    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:  # get_source and the like
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module.__name__)
