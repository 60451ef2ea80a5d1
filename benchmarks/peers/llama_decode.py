"""A whole model in llama.cpp, through the library that llama-cpp-python builds: what llama-bench times.

Runs in the interpreter that has llama-cpp-python, started by `benchmarks.end_to_end`: one JSON request a line, one JSON
answer a line. Alone: python -m benchmarks.peers.llama_decode FILE.gguf --threads 1 2
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import importlib.util
import json
import os
import random
import statistics
import sys
import time
from typing import Any

ERROR = 4  # of ggml_log_level
UBATCH = 512  # tokens of a prompt in a pass, llama-bench's default
INSTALL = 'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python llama-cpp-python==0.3.36'


class LlamaModel:
    """A GGUF file, loaded as llama-bench loads it: mapped, repacked for the CPU where ggml can."""

    def __init__(self, path: str, positions: int) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        self.positions = positions
        self.log = llama_cpp.llama_log_callback(_log_errors)  # called as long as the library lives
        llama_cpp.llama_log_set(self.log, ctypes.c_void_p())
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {os.path.basename(path)}")  # noqa: PTH119
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = positions, max(positions, UBATCH), UBATCH
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {positions} positions")
        self.memory = llama_cpp.llama_get_memory(self.context)
        draw = random.Random(0)
        self.tokens = (ctypes.c_int32 * positions)(*(draw.randrange(self.vocab) for _ in range(positions)))
        self.filled = 0

    def run(self, prompt: int, generated: int, depth: int, threads: int) -> float:
        """Seconds of one run after `depth` positions."""
        self.api.llama_set_n_threads(self.context, threads, threads)
        self.fill(depth)
        begin = time.perf_counter()
        if prompt:
            self.decode(0, prompt)
        for step in range(generated):
            self.decode(step, 1)
        self.api.llama_synchronize(self.context)
        return time.perf_counter() - begin

    def fill(self, depth: int) -> None:
        """The cache has `depth` positions; those that it has already are kept."""
        if self.filled > depth or not depth:
            self.api.llama_memory_clear(self.memory, False)
            self.filled = 0
        else:
            self.api.llama_memory_seq_rm(self.memory, 0, self.filled, -1)
        if depth > self.filled:
            self.decode(0, depth - self.filled)
            self.filled = depth

    def decode(self, first: int, count: int) -> None:
        start = ctypes.cast(ctypes.byref(self.tokens, 4 * first), ctypes.POINTER(ctypes.c_int32))
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(start, count)) != 0:
            raise SystemExit("llama_decode failed")

    def logits(self, ids: list[int], threads: int) -> list[float]:
        """Of the token after `ids`, evaluated as a prompt."""
        self.api.llama_set_n_threads(self.context, threads, threads)
        self.api.llama_memory_clear(self.memory, False)
        self.filled = 0
        tokens = (ctypes.c_int32 * len(ids))(*ids)  # the batch only points at them
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(tokens, len(ids))) != 0:
            raise SystemExit("llama_decode failed")
        found = self.api.llama_get_logits_ith(self.context, -1)
        return [found[token] for token in range(self.vocab)]

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def _log_errors(level: int, text: bytes, _user_data: Any) -> None:
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def answer(request: dict[str, Any], state: dict[str, LlamaModel]) -> dict[str, Any]:
    if request["do"] == "hello":
        return {"versions": {"llama-cpp-python": importlib.metadata.version("llama-cpp-python")}}
    if request["do"] == "load":
        if "model" in state:
            state.pop("model").close()
        state["model"] = LlamaModel(request["path"], request["positions"])
        return {"model_size": state["model"].api.llama_model_size(state["model"].model)}
    if request["do"] == "logits":
        return {"logits": state["model"].logits(request["ids"], request["threads"])}
    arguments = {name: request[name] for name in ("prompt", "generated", "depth", "threads")}
    busy = time.process_time()
    seconds = state["model"].run(**arguments)
    return {"seconds": seconds, "core_seconds": time.process_time() - busy}


def serve() -> None:
    # What the library prints must not come between the answers.
    answer_file = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    state: dict[str, LlamaModel] = {}
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), state)), file=answer_file, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", nargs="?")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--generated", type=int, default=32)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("llama_cpp") is None:
        print(f"llama-cpp-python is not installed in {sys.executable}: {INSTALL}", file=sys.stderr)
        return 3
    if options.worker:
        serve()
        return 0
    if options.path is None:
        parser.error("the path of a GGUF file")
    model = LlamaModel(options.path, max(options.prompt, options.generated))
    for threads in options.threads:
        for prompt, generated in ((options.prompt, 0), (0, options.generated)):
            model.run(prompt, generated, 0, threads)
            seconds = [model.run(prompt, generated, 0, threads) for _ in range(options.runs)]
            rate = (prompt + generated) / statistics.median(seconds)
            print(f"{'pp' if prompt else 'tg'}{prompt + generated} threads={threads}: {rate:.2f} tokens/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
