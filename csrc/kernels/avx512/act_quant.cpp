#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// int8 activations of the class `mad`, one scale per act group (docs/numerics.md).

namespace tmac::avx512 {
namespace {

void quantize_group(const PrepareArgs& args, const ActGroup& group, int32_t index) {
    __m512 largest_lanes = _mm512_setzero_ps();
    __mmask16 special = 0;
    for (int32_t at = 0; at < group.k_count; at += kLanes) {
        const __m512 columns = load_columns(args.x, group, at);
        constexpr int kNanOrInfinity = 0x81 | 0x08 | 0x10;  // quiet and signalling NaN, both infinities
        special = static_cast<__mmask16>(special | _mm512_fpclass_ps_mask(columns, kNanOrInfinity));
        largest_lanes = _mm512_max_ps(_mm512_abs_ps(columns), largest_lanes);
    }
    if (special != 0) {
        refuse_int8(args, index);
        return;
    }
    const float largest = _mm512_reduce_max_ps(largest_lanes);
    const ActScale scale = act_scale_of(largest);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin;
    __m512i sum_i32x16 = _mm512_setzero_si512();
    for (int32_t at = 0; at < group.padded_count; at += kLanes) {
        const __m512 scaled = _mm512_mul_ps(load_columns(args.x, group, at), _mm512_set1_ps(scale.inverse));
        const __m512i rounded_i32x16 = _mm512_cvtps_epi32(scaled);
        sum_i32x16 = _mm512_add_epi32(sum_i32x16, rounded_i32x16);
        const int32_t left = group.padded_count - at;  // a multiple of 8, so the last step may be half
        const auto mask = static_cast<__mmask16>(left >= kLanes ? 0xffffU : (1U << left) - 1U);
        _mm512_mask_cvtepi32_storeu_epi8(q + at, mask, rounded_i32x16);
    }
    finish_int8(args, index, _mm512_reduce_add_epi32(sum_i32x16), scale.scale);
}

}  // namespace

void act_quant(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        quantize_group(args, args.act_groups[index], index);
    }
}

}  // namespace tmac::avx512
