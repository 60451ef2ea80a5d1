#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// int8 activations of the class `mad`, one scale per act group (docs/numerics.md).

namespace tmac::avx2 {
namespace {

TMAC_ALWAYS_INLINE int32_t sum_lanes(__m256i eight_i32) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight_i32), _mm256_extracti128_si256(eight_i32, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

void quantize_group(const PrepareArgs& args, const ActGroup& group, int32_t index) {
    __m256 largest_lanes = _mm256_setzero_ps();
    __m256 special = _mm256_setzero_ps();
    const __m256 infinity = _mm256_set1_ps(INFINITY);
    for (int32_t at = 0; at < group.k_count; at += kLanes) {
        const __m256 magnitude = abs_ps(load_columns(args.x, group, at));
        special = _mm256_or_ps(special, _mm256_cmp_ps(magnitude, infinity, _CMP_NLT_UQ));  // infinite or NaN
        largest_lanes = _mm256_max_ps(magnitude, largest_lanes);
    }
    if (_mm256_movemask_ps(special) != 0) {
        refuse_int8(args, index);
        return;
    }
    const float largest = max_lane(largest_lanes);
    const ActScale scale = act_scale_of(largest);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin;
    __m256i sum_i32x8 = _mm256_setzero_si256();
    for (int32_t at = 0; at < group.padded_count; at += kLanes) {
        const __m256 scaled = _mm256_mul_ps(load_columns(args.x, group, at), _mm256_set1_ps(scale.inverse));
        const __m256i rounded_i32x8 = _mm256_cvtps_epi32(scaled);
        sum_i32x8 = _mm256_add_epi32(sum_i32x8, rounded_i32x8);
        const __m128i rounded_i16x8 =
            _mm_packs_epi32(_mm256_castsi256_si128(rounded_i32x8), _mm256_extracti128_si256(rounded_i32x8, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(q + at), _mm_packs_epi16(rounded_i16x8, rounded_i16x8));
    }
    finish_int8(args, index, sum_lanes(sum_i32x8), scale.scale);
}

}  // namespace

void act_quant(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        quantize_group(args, args.act_groups[index], index);
    }
}

}  // namespace tmac::avx2
