"""What `_core.ModelBuilder` takes, remembered."""

import numpy as np

from tmac import Codes
from tmac.formats.checkpoint import to_float32

KINDS = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class RecordingBuilder:
    """Checks what it is given as the real one does, and keeps it."""

    def __init__(self, config):
        self.config = config
        self.packed = {}
        self.floats = {}
        self.biases = {}

    def add_packed(self, name, buffer, bias):
        assert buffer.dtype == np.uint8
        assert buffer.ndim == 1
        self._keep(self.packed, name, buffer, bias)

    def add_floats(self, name, array, dtype, bias=None):
        assert array.dtype == KINDS[dtype]
        assert array.flags.c_contiguous
        self._keep(self.floats, name, (array, dtype), bias)

    def _keep(self, where, name, value, bias):
        assert name not in self.packed
        assert name not in self.floats
        where[name] = value
        if bias is not None:
            assert bias.dtype == np.float32
            self.biases[name] = bias

    def build(self):
        return self

    @property
    def names(self):
        return self.packed.keys() | self.floats.keys()

    def values(self, name):
        """The weight in f32."""
        if name in self.packed:
            return Codes.from_buffer(self.packed[name]).dequantize()
        return to_float32(*self.floats[name])

    def spec(self, name):
        return Codes.from_buffer(self.packed[name]).spec

    def nbytes(self):
        return sum(each.nbytes for each in self.packed.values()) + sum(each.nbytes for each, _ in self.floats.values())
