"""The few calls of ggml's C interface that one matrix product needs, through ctypes on the libraries that
llama-cpp-python brings."""

from __future__ import annotations

import ctypes
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TYPES = {"f32": 0, "q4_0": 2, "q8_0": 8, "q2_K": 10, "q3_K": 11, "q4_K": 12, "tq2_0": 35, "q1_0": 41}


LEAST_SERIOUS_LOGGED = 3  # warnings


def log_warnings(level: int, text: bytes, _user_data: Any) -> None:
    if level >= LEAST_SERIOUS_LOGGED:
        sys.stderr.write(text.decode(errors="replace"))


class InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


BASE: dict[str, tuple[Any, list[Any]]] = {
    "ggml_log_set": (None, [c_void_p, c_void_p]),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_type_name": (c_char_p, [c_int]),
    "ggml_row_size": (c_size_t, [c_int, c_int64]),
    "ggml_blck_size": (c_int64, [c_int]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_new_tensor_2d": (c_void_p, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_mul_mat": (c_void_p, [c_void_p, c_void_p, c_void_p]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, [c_void_p, c_void_p]),
    "ggml_backend_buffer_free": (None, [c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
    "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_tensor_get": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
    "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
    "ggml_backend_dev_supports_op": (c_bool, [c_void_p, c_void_p]),
}
CPU: dict[str, tuple[Any, list[Any]]] = {
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_reg": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
}


class Ggml:
    """The libraries in a folder."""

    def __init__(self, folder: Path) -> None:
        self.base = bind(folder / "libggml-base.so", BASE)
        self.cpu = bind(folder / "libggml-cpu.so", CPU)
        self.log = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(log_warnings)  # called as long as ggml lives
        self.base.ggml_log_set(self.log, None)
        for name, number in TYPES.items():
            found = self.base.ggml_type_name(number)
            if found is None or found.decode() != name:
                raise SystemExit(f"ggml's type {number} is {found!r}, not {name}: another version of ggml")

    def quantize(self, kind: str, weight: NDArray[np.float32]) -> NDArray[np.uint8]:
        n, k = weight.shape
        data = np.empty((n, self.base.ggml_row_size(TYPES[kind], k)), np.uint8)
        self.base.ggml_quantize_chunk(TYPES[kind], weight.ctypes.data, data.ctypes.data, 0, n, k, None)
        return data

    def dequantize(self, kind: str, data: NDArray[np.uint8], n: int, k: int) -> NDArray[np.float32]:
        weight = np.empty((n, k), np.float32)
        function = getattr(self.base, f"dequantize_row_{kind}")
        function.argtypes, function.restype = [c_void_p, POINTER(c_float), c_int64], None
        function(data.ctypes.data, weight.ctypes.data_as(POINTER(c_float)), n * k)
        return weight

    def repacking_buffer_type(self) -> int | None:
        """Where weights are stored in the order that this CPU's kernels like, or None in a build without."""
        registry = self.cpu.ggml_backend_cpu_reg()
        address = self.base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return None
        types = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.device())
        last = None
        for index in range(16):
            if not types or not types[index]:
                break
            last = types[index]  # the most general one comes last
        return last

    def device(self) -> int:
        return int(self.base.ggml_backend_reg_dev_get(self.cpu.ggml_backend_cpu_reg(), 0))


class Product:
    """One graph with a product per copy of a weight, all with the same input."""

    def __init__(self, ggml: Ggml, kind: str, data: NDArray[np.uint8], x: NDArray[np.float32], n: int, copies: int):
        self.ggml, self.shape, self.copies = ggml, (len(x), n), copies
        self.contexts: list[int] = []
        self.buffers: list[int] = []
        self.backend = ggml.cpu.ggml_backend_cpu_init()
        base, k = ggml.base, x.shape[1]
        plain = base.ggml_backend_cpu_buffer_type()
        inputs = self.context(1)
        self.x = base.ggml_new_tensor_2d(inputs, TYPES["f32"], k, len(x))
        self.allocate(inputs, plain)
        repacking = ggml.repacking_buffer_type()
        self.repacked = repacking is not None and self.build(kind, k, repacking)
        if not self.repacked:
            self.build(kind, k, plain)
        base.ggml_backend_tensor_set(self.x, x.ctypes.data, 0, x.nbytes)
        for weight in self.weights:
            base.ggml_backend_tensor_set(weight, data.ctypes.data, 0, data.nbytes)

    def context(self, tensors: int, graph: int = 0) -> int:
        base = self.ggml.base
        size = (tensors + 1) * base.ggml_tensor_overhead()
        size += base.ggml_graph_overhead_custom(graph, False) if graph else 0
        self.contexts.append(int(base.ggml_init(InitParams(size + 4096, None, True))))
        return self.contexts[-1]

    def allocate(self, context: int, buffer_type: int) -> None:
        buffer = self.ggml.base.ggml_backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        if not buffer:
            raise MemoryError("ggml could not allocate its tensors")
        self.buffers.append(int(buffer))

    def build(self, kind: str, k: int, buffer_type: int) -> bool:
        """Weights in a buffer of this type and the graph; False where the kernels for it do not take the weight."""
        base, copies = self.ggml.base, self.copies
        weights = self.context(copies)
        self.weights = [base.ggml_new_tensor_2d(weights, TYPES[kind], k, self.shape[1]) for _ in range(copies)]
        self.allocate(weights, buffer_type)
        nodes = self.context(copies, graph=copies + 1)
        self.results = [base.ggml_mul_mat(nodes, weight, self.x) for weight in self.weights]
        if not base.ggml_backend_dev_supports_op(self.ggml.device(), self.results[0]):
            base.ggml_backend_buffer_free(self.buffers.pop())
            return False
        self.graph = base.ggml_new_graph_custom(nodes, copies + 1, False)
        for result in self.results:
            base.ggml_build_forward_expand(self.graph, result)
        self.allocate(nodes, base.ggml_backend_cpu_buffer_type())
        return True

    def compute(self, threads: int) -> None:
        self.ggml.cpu.ggml_backend_cpu_set_n_threads(self.backend, threads)
        if self.ggml.base.ggml_backend_graph_compute(self.backend, self.graph) != 0:
            raise RuntimeError("ggml could not compute the graph")

    def result(self) -> NDArray[np.float32]:
        """Of the first copy: [m, n]."""
        values = np.empty(self.shape, np.float32)
        self.ggml.base.ggml_backend_tensor_get(self.results[0], values.ctypes.data, 0, values.nbytes)
        return values

    def __del__(self) -> None:
        base = self.ggml.base
        for buffer in self.buffers:
            base.ggml_backend_buffer_free(buffer)
        for context in self.contexts:
            base.ggml_free(context)
        base.ggml_backend_free(self.backend)


def bind(path: Path, functions: dict[str, tuple[Any, list[Any]]]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    for name, (result, arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
