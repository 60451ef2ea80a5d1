"""Layers and inputs that the tests of tmac.nn share."""

import numpy as np
import torch

from tmac import Codes, QuantSpec
from tmac.nn import QuantLinear

W4 = QuantSpec(bits=4, group_size=32, zero_point="offset")
EXACT = W4.replace(activation="float")
TERNARY = QuantSpec(bits=2, group_size=-1, codebook="ternary")


def random_codes(spec, n, k, perm=False, seed=0):
    rng = np.random.default_rng(seed)
    groups = (n, spec.num_groups(k))
    zeros = {
        "fixed": None,
        "integer": rng.integers(0, 2**spec.bits, groups).astype(np.uint8),
        "real": (2**spec.bits * rng.random(groups)).astype(np.float16),
        "offset": rng.normal(size=groups).astype(np.float16),
    }[spec.zero_point]
    codes = rng.integers(0, 3 if spec.codebook == "ternary" else 2**spec.bits, (n, k)).astype(np.uint8)
    order = rng.permutation(k).astype(np.int32) if perm else None
    if spec.scale_format == "two_level":
        subs = rng.integers(-128, 128, (2, *groups)).astype(np.int8)
        supers = rng.normal(size=(2, n, spec.num_super_groups(k))).astype(np.float16)
        if spec.zero_point == "fixed":
            return Codes(spec, codes, subs[0], perm=order, super_scales=supers[0])
        return Codes(spec, codes, subs[0], subs[1], order, None, supers[0], supers[1])
    return Codes(spec, codes, rng.normal(size=groups).astype(np.float16), zeros, order)


def random_layer(spec=W4, n=40, k=96, bias=True, perm=False, seed=0, kernel=""):
    values = torch.from_numpy(np.random.default_rng(seed + 1).normal(size=n)) if bias else None
    layer = QuantLinear.from_codes(random_codes(spec, n, k, perm, seed), values)
    if kernel:
        layer.repack_(kernel)
    return layer


def random_input(*shape, dtype=torch.float32, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32)).to(dtype)


def assert_same_bits(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.contiguous().view(torch.uint8).equal(b.contiguous().view(torch.uint8)) if a.numel() else True
