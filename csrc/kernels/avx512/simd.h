#pragma once

#include <immintrin.h>

#include "kernels/shared.h"

// What the AVX-512 kernels share: registers of floats, loads and stores with tails.

namespace tmac::avx512 {
namespace {

inline constexpr int32_t kLanes = 16;

/// Asks for a line, to wait in the L2 cache.
TMAC_ALWAYS_INLINE void prefetch_l2(const uint8_t* line) {
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
}

/// The operations that kernels/shared.h asks for.
struct Floats {
    using F = __m512;
    using I = __m512i;

    static TMAC_ALWAYS_INLINE F set1(float value) { return _mm512_set1_ps(value); }
    static TMAC_ALWAYS_INLINE F to_float(I values) { return _mm512_cvtepi32_ps(values); }
    static TMAC_ALWAYS_INLINE F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
    static TMAC_ALWAYS_INLINE F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
    static TMAC_ALWAYS_INLINE F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static TMAC_ALWAYS_INLINE F multiply_subtract(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }
    static TMAC_ALWAYS_INLINE F load(const float* values) { return _mm512_loadu_ps(values); }
    static TMAC_ALWAYS_INLINE F widen(const uint16_t* halves) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    }
    static TMAC_ALWAYS_INLINE F widen(const uint8_t* bytes) {
        return to_float(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
    }
    static TMAC_ALWAYS_INLINE F widen(const int8_t* bytes) {
        return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
    }
};

/// Rows [row, min(row + 16, end)) of one token.
TMAC_ALWAYS_INLINE void store_rows(float* y, int64_t row, int64_t end, __m512 values) {
    const int64_t left = end - row;
    if (left >= kLanes) {
        _mm512_storeu_ps(y + row, values);
    } else if (left > 0) {
        _mm512_mask_storeu_ps(y + row, static_cast<__mmask16>((1U << left) - 1U), values);
    }
}

/// Columns [at, at + 16) of an act group, zero past its end.
TMAC_ALWAYS_INLINE __m512 load_columns(const float* x, const ActGroup& group, int32_t at) {
    const int32_t left = group.k_count - at;
    const auto mask = static_cast<__mmask16>(left >= kLanes ? 0xffffU : (1U << (left > 0 ? left : 0)) - 1U);
    return _mm512_maskz_loadu_ps(mask, x + group.k_begin + at);
}

/// lane[j] + lane[j + 8], then the same with 4, 2 and 1: the scalar reference's order.
TMAC_ALWAYS_INLINE float fold_lanes(__m512 lanes) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_extractf32x8_ps(lanes, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace
}  // namespace tmac::avx512
