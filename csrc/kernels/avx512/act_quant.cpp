#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// int8 activations of the class `mad`, one scale per act group (docs/numerics.md).

namespace tmac::avx512 {
namespace {

constexpr float kLargestInt8 = 127.0F;

void quantize_group(const PrepareArgs& args, const ActGroup& group, int32_t index) {
    __m512 largest_lanes = _mm512_setzero_ps();
    __mmask16 special = 0;
    for (int32_t at = 0; at < group.k_count; at += kLanes) {
        const __m512 columns = load_columns(args.x, group, at);
        constexpr int kNanOrInfinity = 0x81 | 0x08 | 0x10;  // quiet and signalling NaN, both infinities
        special = static_cast<__mmask16>(special | _mm512_fpclass_ps_mask(columns, kNanOrInfinity));
        largest_lanes = _mm512_max_ps(_mm512_abs_ps(columns), largest_lanes);
    }
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin;
    if (special != 0) {
        std::memset(q, 0, static_cast<size_t>(group.padded_count));
        args.act_scale[index] = args.act_sum[index] = NAN;
        args.act_isum[index] = 0;
        return;
    }
    const float largest = _mm512_reduce_max_ps(largest_lanes);
    float inverse = largest > 0.0F ? kLargestInt8 / largest : 0.0F;
    inverse = std::isfinite(inverse) ? inverse : 0.0F;
    __m512i sum_i32x16 = _mm512_setzero_si512();
    for (int32_t at = 0; at < group.padded_count; at += kLanes) {
        const __m512 scaled = _mm512_mul_ps(load_columns(args.x, group, at), _mm512_set1_ps(inverse));
        const __m512i rounded_i32x16 = _mm512_cvtps_epi32(scaled);
        sum_i32x16 = _mm512_add_epi32(sum_i32x16, rounded_i32x16);
        const int32_t left = group.padded_count - at;  // a multiple of 8, so the last step may be half
        const auto mask = static_cast<__mmask16>(left >= kLanes ? 0xffffU : (1U << left) - 1U);
        _mm512_mask_cvtepi32_storeu_epi8(q + at, mask, rounded_i32x16);
    }
    const int32_t sum = _mm512_reduce_add_epi32(sum_i32x16);
    const float act_scale = inverse > 0.0F ? largest / kLargestInt8 : 0.0F;
    args.act_isum[index] = sum;
    args.act_scale[index] = act_scale;
    args.act_sum[index] = act_scale * static_cast<float>(sum);
}

}  // namespace

void act_quant(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        quantize_group(args, args.act_groups[index], index);
    }
}

}  // namespace tmac::avx512
