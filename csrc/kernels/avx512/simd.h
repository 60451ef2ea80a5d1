#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels/kernel.h"

// What the AVX-512 kernels share: 16 rows of group values as floats, and the float epilogue of docs/numerics.md.

namespace tmac::avx512 {
namespace {

inline constexpr int32_t kLanes = 16;

/// Sixteen scales, zeros or offsets from element `index` on.
TMAC_ALWAYS_INLINE __m512 load_group_values(const void* values, GroupType type, int64_t index) {
    switch (type) {
        case GroupType::u8: {
            const auto* bytes = static_cast<const uint8_t*>(values) + index;
            return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes))));
        }
        case GroupType::f16: {
            const auto* halves = static_cast<const uint16_t*>(values) + index;
            return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
        }
        case GroupType::f32:
            return _mm512_loadu_ps(static_cast<const float*>(values) + index);
        case GroupType::none:
            break;
    }
    return _mm512_setzero_ps();
}

/// The group values of 16 rows that one act group needs, and how they enter the result.
struct GroupTerms {
    __m512 scale;
    __m512 coefficient;
};

/// Everything about the epilogue that does not change from group to group.
struct Epilogue {
    const QgemmArgs& args;
    float centre;
    bool has_coefficient;

    TMAC_ALWAYS_INLINE Epilogue(const QgemmArgs& qgemm, float from)
        : args(qgemm),
          centre(from),
          has_coefficient(qgemm.spec->zero_point != ZeroPoint::fixed || qgemm.spec->fixed_zero != from) {}

    /// `index`: of the first row's value in the tiled order.
    TMAC_ALWAYS_INLINE GroupTerms load(int64_t index) const {
        const __m512 scale = load_group_values(args.scales, args.scale_type, index);
        if (!has_coefficient) {
            return {scale, _mm512_setzero_ps()};
        }
        const __m512 from = _mm512_set1_ps(centre);
        if (args.spec->zero_point == ZeroPoint::offset) {
            return {scale, _mm512_fmadd_ps(scale, from, load_group_values(args.zeros, args.zero_type, index))};
        }
        const __m512 zero = args.spec->zero_point == ZeroPoint::fixed
                                ? _mm512_set1_ps(args.spec->fixed_zero)
                                : load_group_values(args.zeros, args.zero_type, index);
        return {scale, _mm512_mul_ps(scale, _mm512_sub_ps(from, zero))};
    }

    TMAC_ALWAYS_INLINE __m512 add(const GroupTerms& terms, __m512i isum_i32x16, float act_scale, float act_sum,
                                  __m512 y) const {
        const __m512 factor = _mm512_mul_ps(terms.scale, _mm512_set1_ps(act_scale));
        y = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum_i32x16), factor, y);
        return has_coefficient ? _mm512_fmadd_ps(terms.coefficient, _mm512_set1_ps(act_sum), y) : y;
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
