"""Codes come out of bit streams as they went in, whatever their width; streams that are too short are errors."""

import numpy as np
import packed_models
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tmac import _core
from tmac.formats.packing import AWQ_LANES, num_words, unpack_across, unpack_down, unpack_planes_down, unpack_stream

BITS = st.integers(1, 8)
SHAPES = st.tuples(st.integers(1, 140), st.integers(1, 140))


def codes_of(shape, bits, seed):
    return np.random.default_rng(seed).integers(0, 2**bits, shape)


@given(BITS, SHAPES, st.sampled_from(["<i4", "<u2", "u1"]), st.integers(0, 9))
def test_streams_in_rows(bits, shape, words, seed):
    codes = codes_of(shape, bits, seed)
    stream = packed_models.stream(codes, bits)
    np.testing.assert_array_equal(unpack_stream(stream.view(words), bits, shape[1]), codes)
    np.testing.assert_array_equal(unpack_stream(np.asfortranarray(stream), bits, shape[1]), codes)


@given(BITS, SHAPES, st.integers(0, 9))
def test_streams_down_columns(bits, shape, seed):
    codes = codes_of(shape, bits, seed)
    words = packed_models.stream(codes, bits).T
    assert words.shape[0] == num_words(shape[1], bits)
    np.testing.assert_array_equal(unpack_down(words, bits, shape[1]), codes)


@given(BITS, st.tuples(st.integers(1, 20), st.integers(1, 140)), st.integers(0, 9))
def test_streams_across_columns(bits, shape, seed):
    codes = codes_of((shape[0] * 8, shape[1]), bits, seed)
    words = packed_models.awq_tensors("", codes, codes, codes, bits)[".qweight"]
    np.testing.assert_array_equal(unpack_across(words, bits, len(codes)), codes)


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_planes_down_columns(bits):
    codes = codes_of((40, 96), bits, 1)
    np.testing.assert_array_equal(unpack_planes_down(packed_models.planar(codes, bits).T, bits, 96), codes)


def test_what_is_too_short_or_of_another_kind_is_an_error():
    words = np.zeros((3, 4), np.int32)
    with pytest.raises(ValueError, match="at most 16 codes of 8 bits in 16 bytes, got 17"):
        unpack_stream(words, 8, 17)
    with pytest.raises(ValueError, match="1 to 32 codes of 3 bits in 3 words, got 33"):
        unpack_down(words, 3, 33)
    with pytest.raises(ValueError, match="1 to 32 codes of 4 bits in 4 words, got 40"):
        unpack_across(words, 4, 40)
    with pytest.raises(ValueError, match="expected a multiple of 8 codes, got 12"):
        unpack_across(words, 4, 12)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits must be 1 to 8, got {bits}"):
            _core.unpack_down(words, bits, 1)
    with pytest.raises(ValueError, match="expected dtype int32, got int64"):
        _core.unpack_down(words.astype(np.int64), 4, 8)
    with pytest.raises(ValueError, match="must be C-contiguous"):
        _core.unpack_across(words.T, 4, 8, AWQ_LANES)
    with pytest.raises(ValueError, match="lanes must hold each of 0 to 7"):
        _core.unpack_across(words, 4, 8, [0, 1, 2, 3, 4, 5, 6, 6])


def test_many_threads_give_the_same():
    codes = codes_of((1000, 500), 3, 2)
    words = np.ascontiguousarray(packed_models.stream(codes, 3).T)
    for num_threads in (1, 2, 5):
        np.testing.assert_array_equal(_core.unpack_down(words, 3, 500, num_threads), codes)
