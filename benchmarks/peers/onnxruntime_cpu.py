"""onnxruntime's MatMulNBits: 2, 4 and 8 bits, accuracy_level 4 (int8 activations).

The copies of the weight are nodes of one graph, so that a session's overhead is spread over all of them.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.peer import Job, Kernel, Loaded, NotTimedError, Peer, main

INT8_ERROR = 0.015
INT8_ACTIVATIONS = 4  # accuracy_level


class OnnxRuntime(Peer):
    name = "onnxruntime"
    module = "onnxruntime"
    install = "pip install onnxruntime==1.31.1 onnx numpy"

    def versions(self) -> dict[str, str]:
        import onnx
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "onnx": onnx.__version__}

    def kernels(self) -> list[Kernel]:
        return [
            Kernel(f"MatMulNBits {bits}-bit g{group}", {"bits": bits, "group_size": group}, INT8_ERROR)
            for bits, group in ((4, 128), (4, 32), (2, 128), (2, 64), (8, 128))
        ]

    def load(self, kernel: Kernel, job: Job) -> Loaded:
        bits, group = kernel.ours["bits"], kernel.ours["group_size"]
        if job.k % group:
            raise NotTimedError(f"k is not a multiple of {group}")
        nbytes = job.n * job.k * bits // 8 + job.n * (job.k // group) * 4
        copies = job.copies(nbytes)
        meaning = (bits, group, job.n, job.k, job.threads, copies)
        [(session, weight)] = self.copies_of(meaning, lambda: make_session(job, bits, group, copies), 1)
        x = job.input()
        binding = session.io_binding()
        results = [np.zeros((job.m, job.n), np.float32) for _ in range(copies)]
        binding.bind_cpu_input("x", x)
        for index, result in enumerate(results):
            binding.bind_output(f"y{index}", "cpu", 0, np.float32, result.shape, result.ctypes.data)
        session.run_with_iobinding(binding)
        # The arrays behind the binding's addresses live as long as the call.
        keep = (x, results)
        return Loaded(lambda: (session.run_with_iobinding(binding), keep), copies, nbytes, results[0].copy(), weight, x)


def dequantize(codes: NDArray[np.uint8], scales: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Codes lie in a byte from its lowest bits on, and are counted from 2^(bits-1)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (codes[..., None] >> shifts & (2**bits - 1)).reshape(*codes.shape[:2], -1)
    weight: NDArray[np.float32] = (values.astype(np.float32) - 2 ** (bits - 1)) * scales[..., None]
    return weight


def make_session(job: Job, bits: int, group: int, copies: int) -> tuple[Any, NDArray[np.float32]]:
    """(session of a graph for any number of tokens, the first copy's weight)."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (copies, job.n, job.k // group, group * bits // 8), dtype=np.uint8)
    scales = rng.uniform(0.005, 0.02, (copies, job.n, job.k // group)).astype(np.float32)
    nodes, initializers, outputs = [], [], []
    for index in range(copies):
        initializers += [
            numpy_helper.from_array(codes[index], f"w{index}"),
            numpy_helper.from_array(scales[index].reshape(-1), f"s{index}"),
        ]
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                ["x", f"w{index}", f"s{index}"],
                [f"y{index}"],
                domain="com.microsoft",
                K=job.k,
                N=job.n,
                bits=bits,
                block_size=group,
                accuracy_level=INT8_ACTIVATIONS,
            )
        )
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, ["m", job.n]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", job.k])
    graph = helper.make_graph(nodes, "copies", [x], outputs, initializers)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = job.threads
    settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session, dequantize(codes[0], scales[0], bits).reshape(job.n, job.k)


if __name__ == "__main__":
    sys.exit(main(OnnxRuntime()))
