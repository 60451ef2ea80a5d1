"""Stands in for the compiled model: keeps what it is given, counts what it is asked for."""

import numpy as np


class FakeModel:
    def __init__(self, config, packed, floats):
        self.config, self.packed, self.floats = config, packed, floats
        self.family = config["family"]
        self.weight_bytes = sum(buffer.nbytes for buffer in packed.values())
        self.bytes_per_token = 1000


class FakeBuilder:
    def __init__(self, config):
        self.config, self.packed, self.floats = config, {}, {}

    def add_packed(self, name, buffer, bias=None):
        assert name not in self.packed
        self.packed[name] = buffer

    def add_floats(self, name, array, dtype, bias=None):
        assert name not in self.floats
        assert dtype == "F32"
        self.floats[name] = array

    def build(self):
        return FakeModel(self.config, self.packed, self.floats)


class FakeDecoder:
    """Every pass is in `passes`: (sequence, number of tokens, phase, wanted rows, threads)."""

    def __init__(self, model, cache_type="f16", max_positions=0):
        self.model, self.cache_type = model, cache_type
        self.lengths, self.passes, self.profiled = {}, [], False
        self.seconds = 0

    def create(self):
        return self.fork(None, 0)

    def fork(self, parent, length):
        assert parent is None or length <= self.lengths[parent]
        new = 1 + max(self.lengths, default=-1)
        self.lengths[new] = length
        return new

    def release(self, sequence):
        del self.lengths[sequence]

    def forward(self, ids, tokens, phase, wanted, rope_lengths=None, num_threads=0):
        assert len(ids) == len(tokens) == len(wanted) == 1
        assert tokens[0].dtype == wanted[0].dtype == np.int32
        self.lengths[ids[0]] += len(tokens[0])
        assert self.lengths[ids[0]] <= self.model.config["context_length"]
        self.passes.append((ids[0], len(tokens[0]), phase, wanted[0].tolist(), num_threads))
        self.seconds += self.profiled
        return np.zeros((len(wanted[0]), 8), np.float32)

    def profile(self, on):
        self.profiled = on

    def take_profile(self):
        passes, self.seconds = self.seconds, 0
        stages = ("embedding", "input", "qkv", "attention", "output", "gate_up", "down", "experts", "head")
        return dict.fromkeys(stages, 0.01 * passes) | {"total": 0.1 * passes, "passes": passes, "rows": passes}


def use_fakes(monkeypatch):
    from tmac import _core

    monkeypatch.setattr(_core, "ModelBuilder", FakeBuilder, raising=False)
    monkeypatch.setattr(_core, "Decoder", FakeDecoder, raising=False)
