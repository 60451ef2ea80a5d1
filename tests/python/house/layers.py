"""The arrows between the layers, as one table each for C++ and Python, and the readers that find a wrong one.

docs/design.md draws the same table. A file that no row describes is a violation too: a new folder needs a row.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)', re.MULTILINE)


@dataclass(frozen=True)
class CppLayer:
    """`files` (fnmatch, relative to csrc) may include `ours` and the system headers `system`, but not `never`."""

    files: str
    ours: tuple[str, ...]
    system: tuple[str, ...] = ("*",)
    never: tuple[str, ...] = ()


INTRINSICS = ("immintrin.h", "arm_neon.h")
BARE = ("cstdint", "cstddef", "cstring", "cmath", "utility", *INTRINSICS)
FOREIGN = ("omp.h", "pybind11/*", "Python.h", "torch/*", "ATen/*")
THREADS = ("thread", "mutex", "atomic", "future", "condition_variable", "core/thread_pool.h")
OWN_POOL = "core/worker_pool.h"  # behind thread_pool.h, which knows when it may be used
PLAIN_CORE = tuple(
    f"core/{name}.h"
    for name in ("bits", "cpu_features", "group_value", "half", "layout", "portable", "quant_spec", "trit_byte")
)
# The float operations and their templates, one for all instruction sets.
VECTOR_MATH = ("core/cache_layout.h", "kernels/vector_*.h")


def kernel_layer(isa: str) -> CppLayer:
    return CppLayer(
        f"kernels/{isa}/*",
        ours=(
            *("kernels/kernel.h", "kernels/shared.h", "kernels/averages.h", f"kernels/{isa}/*"),
            *VECTOR_MATH,
            *PLAIN_CORE,
        ),
        system=BARE,
    )


# The first row that matches a file is its layer.
CPP_LAYERS = (
    CppLayer("core/thread_pool.*", ours=("core/*",), never=("pybind11/*", "Python.h", "torch/*", "ATen/*")),
    CppLayer("core/*", ours=("core/*",), never=(*FOREIGN, *INTRINSICS)),
    CppLayer("layout/*", ours=("core/*", "layout/*"), never=(*FOREIGN, *THREADS, OWN_POOL, *INTRINSICS)),
    CppLayer("kernels/kernel.h", ours=PLAIN_CORE, system=("cstdint",)),
    CppLayer("kernels/shared.h", ours=("kernels/kernel.h", *PLAIN_CORE), system=BARE),
    CppLayer("kernels/averages.h", ours=("kernels/kernel.h", *PLAIN_CORE), system=BARE),
    CppLayer("kernels/vector_ops.h", ours=("kernels/kernel.h", *VECTOR_MATH), system=("cstdint",)),
    CppLayer("kernels/vector_*.h", ours=("kernels/kernel.h", *VECTOR_MATH, *PLAIN_CORE), system=BARE),
    CppLayer("kernels/registry.*", ours=("core/*", "kernels/*"), never=(*FOREIGN, *INTRINSICS)),
    CppLayer("kernels/registry_choice.cpp", ours=("core/*", "kernels/registry.h"), never=(*FOREIGN, *INTRINSICS)),
    CppLayer("kernels/registry_vector.cpp", ours=("core/*", "kernels/*"), never=(*FOREIGN, *INTRINSICS)),
    kernel_layer("scalar"),
    kernel_layer("avx2"),
    kernel_layer("avx512"),
    kernel_layer("neon"),
    CppLayer(
        "ops/*",
        ours=("core/*", "layout/*", "kernels/kernel.h", "kernels/vector_ops.h", "kernels/registry.h", "ops/*"),
        never=(*FOREIGN, OWN_POOL, *INTRINSICS),
    ),
    CppLayer(
        "runtime/*",
        ours=(
            "core/*",
            "layout/*",
            "kernels/kernel.h",
            "kernels/vector_ops.h",
            "kernels/registry.h",
            "ops/*",
            "runtime/*",
        ),
        never=(*FOREIGN, OWN_POOL, *INTRINSICS),
    ),
    CppLayer(
        "bindings/*",
        ours=(
            "core/*",
            "layout/*",
            "kernels/kernel.h",
            "kernels/vector_ops.h",
            "kernels/registry.h",
            "ops/*",
            "runtime/*",
            "bindings/*",
        ),
        never=("omp.h", "torch/*", "ATen/*", OWN_POOL, *INTRINSICS),
    ),
)


@dataclass(frozen=True)
class PyLayer:
    """`files` (fnmatch, relative to tmac) may import the modules `ours` of tmac, the standard library and `others`.

    `lazy` lifts the rule inside functions; what stands under `if TYPE_CHECKING:` costs nothing there either.
    """

    files: str
    ours: tuple[str, ...]
    others: tuple[str, ...] = ()
    lazy: bool = False
    never: tuple[str, ...] = ()


VALUES = ("_core", "spec", "codes", "threads", "tuner", "tuning_cache", "progress", "files")

PY_LAYERS = (
    PyLayer("__init__.py", ours=(*VALUES, "_post_import"), lazy=True, never=("torch", "transformers")),
    PyLayer("__main__.py", ours=("cli",)),
    PyLayer("_*.py", ours=VALUES, lazy=True, never=("torch", "transformers")),
    PyLayer("spec.py", ours=VALUES, others=("numpy",)),
    PyLayer("codes.py", ours=VALUES, others=("numpy",)),
    PyLayer("threads.py", ours=("_core",)),
    PyLayer(
        "tun*.py", ours=("_core", "spec", "threads", "tuner", "tuning_cache", "progress", "files"), others=("numpy",)
    ),
    PyLayer("files.py", ours=()),
    PyLayer("progress.py", ours=(), others=("tqdm",)),
    PyLayer("formats/*", ours=(*VALUES, "formats"), others=("numpy", "gguf", "safetensors")),
    PyLayer("nn/*", ours=(*VALUES, "nn"), others=("numpy", "torch")),
    PyLayer(
        "quant/*",
        ours=(*VALUES, "nn", "quant"),
        others=("numpy", "torch", "tqdm", "rich", "safetensors", "matplotlib"),
    ),
    PyLayer(
        "hf/*",
        ours=(*VALUES, "formats", "nn", "quant", "runtime", "evaluation", "hf"),
        others=("numpy", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "peft", "tqdm"),
    ),
    PyLayer(
        "runtime/*",
        ours=(*VALUES, "formats", "runtime"),
        others=("numpy", "tokenizers", "jinja2", "huggingface_hub", "llguidance"),
    ),
    PyLayer(
        "serve/*",
        ours=(*VALUES, "formats", "runtime", "serve"),
        others=("numpy", "tokenizers", "jinja2", "huggingface_hub", "starlette", "uvicorn"),
    ),
    PyLayer(
        "evaluation/*", ours=(*VALUES, "formats", "runtime", "evaluation"), others=("numpy", "tokenizers", "lm_eval")
    ),
    PyLayer("cli/*", ours=("cli",), lazy=True),
)


def layer_of(path: str, layers: tuple) -> CppLayer | PyLayer | None:
    return next((layer for layer in layers if fnmatch(path, layer.files)), None)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def without_comments(source: str) -> str:
    """C++ without comments; strings and line numbers stay."""
    pattern = re.compile(r'("(?:\\.|[^"\\\n])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
    return pattern.sub(lambda match: match.group(1) or "\n" * match.group(0).count("\n"), source)


def cpp_violations(files: dict[str, str]) -> list[str]:
    """Arrows that CPP_LAYERS does not allow in `files`: {path relative to csrc: text}."""
    found = []
    for path, text in files.items():
        layer = layer_of(path, CPP_LAYERS)
        if layer is None:
            found.append(f"csrc/{path}: no layer describes this file")
            continue
        for ours, system in INCLUDE.findall(without_comments(text)):
            name = ours or system
            allowed = layer.ours if ours else layer.system
            if not matches(name, allowed) or matches(name, layer.never):
                found.append(f"csrc/{path}: {layer.files} must not include {name}")
    return found


def imports(tree: ast.AST, package: str, *, inside_function: bool = False) -> Iterator[tuple[str, bool]]:
    """(absolute module name, stands inside a function or under TYPE_CHECKING) of every import below `tree`."""
    for node in ast.iter_child_nodes(tree):
        lazy = inside_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            lazy = True
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if module == "tmac":
                yield from ((f"tmac.{alias.name}", lazy) for alias in node.names)
            else:
                yield module, lazy
        else:
            yield from imports(node, package, inside_function=lazy)


def py_violations(files: dict[str, str]) -> list[str]:
    """Arrows that PY_LAYERS does not allow in `files`: {path relative to tmac: text}."""
    found = []
    for path, text in files.items():
        layer = layer_of(path, PY_LAYERS)
        if layer is None:
            found.append(f"tmac/{path}: no layer describes this file")
            continue
        package = ".".join(["tmac", *path.split("/")[:-1]])
        for module, inside_function in imports(ast.parse(text), package):
            top, _, rest = module.partition(".")
            if top in layer.never:
                found.append(f"tmac/{path}: {layer.files} must not import {module}")
            elif layer.lazy and inside_function:
                continue
            elif top == "tmac":
                if rest.partition(".")[0] not in layer.ours:
                    found.append(f"tmac/{path}: {layer.files} must not import {module}")
            elif top not in sys.stdlib_module_names and top not in layer.others:
                found.append(f"tmac/{path}: {layer.files} must not import {module}")
    return found


# A parameter: a type, then the name, inside a parenthesis or after a comma.
CPP_PARAMETER = re.compile(r"[(,]\s*(?:const\s+)?[A-Za-z_][\w:<>]*\s*[&*]*\s+[&*]?(bits|group_size)\s*[,)=]")


def cpp_spec_parameters(text: str) -> list[str]:
    """Names of C++ parameters that repeat what the spec says."""
    return CPP_PARAMETER.findall(without_comments(text))


def py_spec_parameters(text: str) -> list[str]:
    """The same for Python, as `function(name)`."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            name = getattr(node, "name", "lambda")
            found += [f"{name}({arg.arg})" for arg in arguments if arg.arg in ("bits", "group_size")]
    return found


# What a kernel's text may not hold, beside its includes.
KERNEL_WORDS = re.compile(
    r"\bstd::(?:vector|string|map|function|unique_ptr|shared_ptr)\b|\b(?:new|delete|throw|malloc|free)\b|#\s*pragma\s+omp"
)


def kernel_words(text: str) -> list[str]:
    """Allocation, exceptions, containers and OpenMP in a kernel file."""
    return [match.group(0) for match in KERNEL_WORDS.finditer(without_comments(text))]
