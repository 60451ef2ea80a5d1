"""What the adapter uses of lm-eval 0.4.13, for where that is not installed."""

import sys
import types


class LM:
    def __init__(self):
        self.cache_hook = CacheHook()


class CacheHook:
    def __init__(self):
        self.added = []

    def add_partial(self, name, arguments, result):
        self.added.append((name, arguments, result))


def install(monkeypatch):
    """Puts the fake in place; returns {name: registered class}."""
    registered = {}

    def register_model(*names):
        def decorate(model):
            assert issubclass(model, LM)
            registered.update(dict.fromkeys(names, model))
            return model

        return decorate

    modules = {
        "lm_eval": {},
        "lm_eval.api": {},
        "lm_eval.api.model": {"LM": LM},
        "lm_eval.api.registry": {"register_model": register_model},
        "lm_eval.__main__": {"cli_evaluate": lambda: registered.update(command=True)},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "tmac.evaluation.lm_eval_model", raising=False)
    return registered
