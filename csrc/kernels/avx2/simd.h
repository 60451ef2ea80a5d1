#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "kernels/kernel.h"

// What the AVX2 kernels share: 8 rows of group values as floats, and the float epilogue of docs/numerics.md.

namespace tmac::avx2 {
namespace {

inline constexpr int32_t kLanes = 8;

/// Eight scales, zeros or offsets from element `index` on.
TMAC_ALWAYS_INLINE __m256 load_group_values(const void* values, GroupType type, int64_t index) {
    switch (type) {
        case GroupType::u8: {
            const auto* bytes = static_cast<const uint8_t*>(values) + index;
            return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes))));
        }
        case GroupType::f16: {
            const auto* halves = static_cast<const uint16_t*>(values) + index;
            return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
        }
        case GroupType::f32:
            return _mm256_loadu_ps(static_cast<const float*>(values) + index);
        case GroupType::none:
            break;
    }
    return _mm256_setzero_ps();
}

/// The group values of 8 rows that one act group needs, and how they enter the result.
struct GroupTerms {
    __m256 scale;
    __m256 coefficient;
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
        const __m256 scale = load_group_values(args.scales, args.scale_type, index);
        if (!has_coefficient) {
            return {scale, _mm256_setzero_ps()};
        }
        const __m256 from = _mm256_set1_ps(centre);
        if (args.spec->zero_point == ZeroPoint::offset) {
            return {scale, _mm256_fmadd_ps(scale, from, load_group_values(args.zeros, args.zero_type, index))};
        }
        const __m256 zero = args.spec->zero_point == ZeroPoint::fixed
                                ? _mm256_set1_ps(args.spec->fixed_zero)
                                : load_group_values(args.zeros, args.zero_type, index);
        return {scale, _mm256_mul_ps(scale, _mm256_sub_ps(from, zero))};
    }

    TMAC_ALWAYS_INLINE __m256 add(const GroupTerms& terms, __m256i isum_i32x8, float act_scale, float act_sum,
                                  __m256 y) const {
        const __m256 factor = _mm256_mul_ps(terms.scale, _mm256_set1_ps(act_scale));
        y = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum_i32x8), factor, y);
        return has_coefficient ? _mm256_fmadd_ps(terms.coefficient, _mm256_set1_ps(act_sum), y) : y;
    }
};

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
