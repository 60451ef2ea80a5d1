"""pack and its inverses, for every layout; buffers that are not packed weights are refused, whatever their bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tmac import _core

from .cases import (
    BUDGET,
    GROUP_SIZES,
    KERNELS,
    SHAPES,
    ZERO_KINDS,
    Case,
    each_kernel,
    linear,
    make_activations,
    make_spec,
    make_weight,
    need,
    pack,
    run_child,
    same_bits,
    sample,
    zero_kinds,
)

NAME = "qgemm_lut_w2_scalar"
Bytes = NDArray[np.uint8]
REFUSED = r"\[(packed weight|linear|QuantSpec)\]"


def small_weight(n: int = 20, k: int = 70, group_size: int = 32, kind: str = "centre") -> _core.PackedWeight:
    spec = make_spec(2, "uniform", "group", group_size, next(each for each in ZERO_KINDS if each.name == kind))
    return pack(make_weight(np.random.default_rng(1), spec, n, k), NAME)


@each_kernel
def test_unpack_is_the_inverse_of_pack(case: Case) -> None:
    need(case[0])
    row, activation = case
    for at, kind in enumerate(zero_kinds(row["codebook"])):
        for n, k in sample(SHAPES, 4, at):
            rng = np.random.default_rng(at)
            spec = make_spec(row["bits"], row["codebook"], activation, GROUP_SIZES[at], kind, ("f16", "f32")[at % 2])
            weight = make_weight(rng, spec, n, k, kind.dtype)
            perm = rng.permutation(k).astype(np.int32) if at % 3 == 1 else None
            planes = _core.codes_to_planes(weight.codes, spec.bits)
            supers = {"super_scales": weight.super_scales, "super_offsets": weight.super_offsets}
            packed = _core.pack(spec, planes, k, weight.scales, weight.zeros, perm, row["name"], 2, **supers)
            back = _core.unpack(packed.buffer(), num_threads=3)
            assert (back["in_features"], back["out_features"], back["kernel"]) == (k, n, row["name"])
            assert type(spec)(**back["spec"]) == spec == type(spec)(**packed.spec)
            arrays = {"planes": planes, "scales": weight.scales, "zeros": weight.zeros, "perm": perm} | supers
            for name, want in arrays.items():
                if want is None:
                    assert back[name] is None
                else:
                    assert back[name].dtype == want.dtype
                    np.testing.assert_array_equal(back[name], want)
            if perm is None:
                dense = _core.dequantize(packed.buffer(), num_threads=2)
                assert same_bits(dense, weight.dequantize_f32()), f"{spec} n={n} k={k}"


@pytest.mark.parametrize("name", [row["name"] for row in _core.kernels() if row["layout"] == "trits"])
def test_five_codes_in_a_byte_have_no_room_for_a_three(name: str) -> None:
    need(next(row for row in KERNELS if row["name"] == name))
    spec = make_spec(2, "ternary", "token", -1, ZERO_KINDS[0])
    codes = np.random.default_rng(0).integers(0, 3, (70, 41), dtype=np.uint8)
    scales = np.ones((70, 1), np.float16)
    _core.pack(spec, _core.codes_to_planes(codes, 2), 41, scales, kernel=name)
    codes[66, 40] = 3
    with pytest.raises(ValueError, match=r"row 66 .* code 3"):
        _core.pack(spec, _core.codes_to_planes(codes, 2), 41, scales, kernel=name)


@each_kernel
def test_describe_agrees_with_the_weight(case: Case) -> None:
    need(case[0])
    spec = make_spec(case[0]["bits"], case[0]["codebook"], case[1], 32, ZERO_KINDS[0])
    packed = pack(make_weight(np.random.default_rng(0), spec, 33, 70), case[0]["name"])
    described = _core.describe(packed.buffer())
    assert (packed.in_features, packed.out_features) == (70, 33)
    assert packed.nbytes == packed.buffer().nbytes == described["nbytes"]
    assert packed.layout == described["layout"] == case[0]["layout"]
    assert packed.kernel == described["kernel"] == case[0]["name"]


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_are_the_bits_most_significant_first(bits: int) -> None:
    for n, k in SHAPES:
        codes = np.random.default_rng(k).integers(0, 2**bits, (n, k), dtype=np.uint8)
        planes = _core.codes_to_planes(codes, bits)
        want = [np.packbits(codes >> plane & 1, axis=1, bitorder="little") for plane in reversed(range(bits))]
        np.testing.assert_array_equal(planes, np.stack(want))
        np.testing.assert_array_equal(_core.planes_to_codes(planes, k), codes)


def test_trits_are_base_three() -> None:
    for n, k in SHAPES:
        codes = np.random.default_rng(k).integers(0, 3, (n, k), dtype=np.uint8)
        padded = np.ones((n, -(-k // 5) * 5), np.uint8)
        padded[:, :k] = codes
        want = (padded.reshape(n, -1, 5) * 3 ** np.arange(5)).sum(axis=-1).astype(np.uint8)
        trits = _core.codes_to_trits(codes)
        np.testing.assert_array_equal(trits, want)
        np.testing.assert_array_equal(_core.trits_to_codes(trits, k), codes)


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("size", [0, 1, 7, 64, 65, 1000, 4096, 100_001])
def test_read_pass_reads_every_byte(size: int, streams: int) -> None:
    """The benchmark's read-only pass: the exclusive or of all words, whatever the threads."""
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    words = np.bitwise_xor.reduce(data[: size // 64 * 64].view(np.uint64), initial=np.uint64(0))
    want = int(words) ^ int(np.bitwise_xor.reduce(data[size // 64 * 64 :], initial=np.uint8(0)))
    assert {_core.read_pass(data, threads, streams) for threads in (1, 2, 3)} == {want}


@pytest.mark.parametrize("length", [0, 1, 7, 63, 64, 100, 127, 128, 191, 192, 255, 256, -64, -1])
def test_truncated_buffers_are_refused(length: int) -> None:
    short = small_weight().buffer()[:length].copy()
    for function in (_core.describe, _core.unpack, _core.dequantize):
        with pytest.raises(ValueError, match=REFUSED):
            function(short)
    with pytest.raises(ValueError, match=REFUSED):
        _core.linear(np.ones((1, 70), np.float32), short)


def test_a_longer_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match=REFUSED):
        _core.describe(np.concatenate([small_weight().buffer(), np.zeros(64, np.uint8)]))


# The header of csrc/core/packed_weight.h: these bytes are under the checksum, the other ones are padding.
HASHED = [*range(126), *range(128, 156)]
CHECKSUM = slice(156, 160)


def fnv1a(data: bytes) -> int:
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def checksum(buffer: Bytes) -> Bytes:
    return np.frombuffer(fnv1a(buffer[HASHED].tobytes()).to_bytes(4, "little"), np.uint8)


def test_every_flipped_bit_of_the_header_is_seen() -> None:
    good = small_weight().buffer().copy()
    np.testing.assert_array_equal(good[CHECKSUM], checksum(good))
    for place in HASHED:
        for bit in range(8):
            bad = good.copy()
            bad[place] ^= 1 << bit
            with pytest.raises(ValueError, match=REFUSED):
                _core.describe(bad)
            with pytest.raises(ValueError, match=REFUSED):
                _core.linear(np.ones((1, 70), np.float32), bad)


def forged_buffers(seed: int, count: int) -> list[Bytes]:
    """Headers with random changes under a right checksum, random payloads, random bytes."""
    rng = np.random.default_rng(seed)
    weights = [small_weight(), small_weight(1, 1, -1), small_weight(33, 130, 50)]
    weights += [small_weight(33, 300, kind="two_level"), small_weight(33, 300, kind="two_level_offset")]
    forged = []
    for at in range(count):
        bad = weights[at % len(weights)].buffer().copy()
        if at % 8 == 7:
            bad[:] = rng.integers(0, 256, bad.size, dtype=np.uint8)
        elif at % 8 == 6:
            bad[192:] = rng.integers(0, 256, bad.size - 192, dtype=np.uint8)
        else:
            for place in rng.choice(HASHED[120:], rng.integers(1, 4)):
                bad[place] = rng.choice([0, 1, 2, 3, 127, 128, 255, int(rng.integers(256))])
        if at % 8 != 7:
            bad[CHECKSUM] = checksum(bad)
        forged.append(bad)
    return forged


def try_forged(seed: int, count: int) -> int:
    """How many forged buffers were refused; any exception but ValueError and UnsupportedSpecError is passed on."""
    refused = 0
    for bad in forged_buffers(seed, count):
        for function in (_core.describe, _core.unpack, _core.dequantize, use):
            refused += is_refused(function, bad)
    return refused


def is_refused(function: Callable[[Bytes], Any], buffer: Bytes) -> bool:
    try:
        function(buffer)
    except (ValueError, _core.UnsupportedSpecError):
        return True
    return False


def use(buffer: Bytes) -> None:
    described = _core.describe(buffer)
    if described["in_features"] <= 1 << 16:
        _core.linear(np.ones((2, described["in_features"]), np.float32), buffer)
        _core.dequantize_rows(buffer, np.array([0, described["out_features"] - 1]))


def test_forged_buffers_do_not_crash() -> None:
    """In a process of its own: a crash is a failure here, not the end of the run."""
    count = max(1, int(400 * BUDGET))
    child = run_child(f"from {__name__} import try_forged; print(try_forged(1, {count}))")
    assert child.returncode == 0, f"exit {child.returncode}: {child.stderr[-2000:]}"
    assert int(child.stdout) > count, "hardly any forged buffer was refused"


@each_kernel
def test_buffers_of_any_alignment(case: Case) -> None:
    """A copy at an odd address gives the same bits or a ValueError, never another result."""
    need(case[0])
    spec = make_spec(case[0]["bits"], case[0]["codebook"], case[1], 32, ZERO_KINDS[0])
    packed = pack(make_weight(np.random.default_rng(0), spec, 33, 70), case[0]["name"])
    x = make_activations(np.random.default_rng(1), 2, 70)
    want, room = linear(x, packed), np.empty(packed.nbytes + 128, np.uint8)
    for shift in (0, 1, 2, 4, 8, 16, 32):
        copy = room[(-room.ctypes.data) % 64 + shift :][: packed.nbytes]
        copy[:] = packed.buffer()
        if shift != 0 and is_refused(_core.describe, copy):
            continue
        assert same_bits(_core.linear(x, copy), want)
