#pragma once

#include <immintrin.h>

#include <cstring>

#include "kernels/shared.h"

// What the AVX2 kernels share: registers of floats, loads and stores with tails.

namespace tmac::avx2 {
namespace {

inline constexpr int32_t kLanes = 8;

/// The operations that kernels/shared.h asks for.
struct Floats {
    using F = __m256;
    using I = __m256i;

    static TMAC_ALWAYS_INLINE F set1(float value) { return _mm256_set1_ps(value); }
    static TMAC_ALWAYS_INLINE F to_float(I values) { return _mm256_cvtepi32_ps(values); }
    static TMAC_ALWAYS_INLINE F subtract(F a, F b) { return _mm256_sub_ps(a, b); }
    static TMAC_ALWAYS_INLINE F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
    static TMAC_ALWAYS_INLINE F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
    static TMAC_ALWAYS_INLINE F multiply_subtract(F a, F b, F c) { return _mm256_fmsub_ps(a, b, c); }
    static TMAC_ALWAYS_INLINE F load(const float* values) { return _mm256_loadu_ps(values); }
    static TMAC_ALWAYS_INLINE F widen(const uint16_t* halves) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
    }
    static TMAC_ALWAYS_INLINE F widen(const uint8_t* bytes) {
        return to_float(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
    }
    static TMAC_ALWAYS_INLINE F widen(const int8_t* bytes) {
        return to_float(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
    }
};

/// Asks for group values of the rows of a tile that later act groups will want: a line of them comes between many lines
/// of codes, too seldom for the CPU to see a stream.
TMAC_ALWAYS_INLINE void prefetch_values(const QgemmArgs& args, const GroupPlace& place, int64_t n_tile) {
    constexpr int64_t kAhead = 256;  // values: 4, 8 or 16 groups of a tile
    const int64_t index = place.value + kAhead;
    TMAC_PREFETCH(static_cast<const uint8_t*>(args.scales) + index * element_bytes(args.scale_type));
    if (args.zeros != nullptr) {
        TMAC_PREFETCH(static_cast<const uint8_t*>(args.zeros) + index * element_bytes(args.zero_type));
    }
    if (args.scale_type == GroupType::i8) {
        const int64_t next = place.super_value + n_tile;  // of the next super-group
        TMAC_PREFETCH(args.super_scales + next);
        if (args.zeros != nullptr) {
            TMAC_PREFETCH(args.super_offsets + next);
        }
    }
}

/// Rows [row, min(row + 8, end)) of one token.
TMAC_ALWAYS_INLINE void store_rows(float* y, int64_t row, int64_t end, __m256 values) {
    const int64_t left = end - row;
    if (left >= kLanes) {
        _mm256_storeu_ps(y + row, values);
    } else if (left > 0) {
        float lanes[kLanes];
        _mm256_storeu_ps(lanes, values);
        std::memcpy(y + row, lanes, static_cast<size_t>(left) * sizeof(float));
    }
}

/// Columns [at, at + 8) of an act group, zero past its end.
TMAC_ALWAYS_INLINE __m256 load_columns(const float* x, const ActGroup& group, int32_t at) {
    const int32_t left = group.k_count - at;
    const float* columns = x + group.k_begin + at;
    if (left >= kLanes) {
        return _mm256_loadu_ps(columns);
    }
    const __m256i lane_i32x8 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(columns, _mm256_cmpgt_epi32(_mm256_set1_epi32(left), lane_i32x8));
}

TMAC_ALWAYS_INLINE __m256 abs_ps(__m256 values) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), values); }

/// The reference's fold of sixteen lanes, from its second step on: the caller has added lanes 8..15 to 0..7.
TMAC_ALWAYS_INLINE float fold_lanes(__m256 eight) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

TMAC_ALWAYS_INLINE float max_lane(__m256 eight) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace
}  // namespace tmac::avx2
