#include "kernels/neon/kernels.h"
#include "kernels/neon/simd.h"

// int8 activations of the class `mad`, one scale per act group or per token (docs/numerics.md).

namespace tmac::neon {
namespace {

constexpr float kTokenFloor = 1e-5F;  ///< BitNet's clamp of a token's largest activation

struct Magnitudes {
    float largest;
    bool finite;
};

/// As integers, magnitudes are ordered like the floats, and whatever is not finite comes last.
Magnitudes magnitudes_of(const PrepareArgs& args, const ActGroup& group) {
    uint32x4_t largest_lanes[4] = {};
    const uint32x4_t magnitude_bits = vdupq_n_u32(INT32_MAX);
    float padded[kStepColumns];
    for (int32_t at = 0; at < group.k_count; at += kStepColumns) {
        const float* columns = columns_at(args.x, group, at, padded);
        TMAC_UNROLL
        for (int i = 0; i < 4; ++i) {
            const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(columns + i * kLanes));
            largest_lanes[i] = vmaxq_u32(largest_lanes[i], vandq_u32(bits, magnitude_bits));
        }
    }
    const uint32x4_t first = vmaxq_u32(largest_lanes[0], largest_lanes[1]);
    const uint32_t bits = vmaxvq_u32(vmaxq_u32(first, vmaxq_u32(largest_lanes[2], largest_lanes[3])));
    float largest = 0.0F;
    std::memcpy(&largest, &bits, sizeof(largest));
    return {largest, bits < 0x7f800000U};
}

/// Layout::quads wants column 4i + j of sixteen at byte 4j + i (mad_codes.h).
TMAC_ALWAYS_INLINE int8x16_t in_order(Layout layout, int8x16_t sixteen) {
    static constexpr uint8_t kTransposed[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return layout == Layout::quads ? vqtbl1q_s8(sixteen, vld1q_u8(kTransposed)) : sixteen;
}

void quantize_group(const PrepareArgs& args, int32_t index, const Magnitudes& magnitudes) {
    const ActGroup& group = args.act_groups[index];
    if (!magnitudes.finite) {
        refuse_int8(args, index);
        return;
    }
    const ActScale scale = act_scale_of(magnitudes.largest);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin;
    int32x4_t sum_i32x4[4] = {};
    float padded[kStepColumns];
    for (int32_t at = 0; at < group.padded_count; at += kStepColumns) {
        const float* columns = columns_at(args.x, group, at, padded);
        int32x4_t rounded_i32x4[4];
        TMAC_UNROLL
        for (int i = 0; i < 4; ++i) {
            rounded_i32x4[i] = vcvtnq_s32_f32(vmulq_n_f32(vld1q_f32(columns + i * kLanes), scale.inverse));
            sum_i32x4[i] = vaddq_s32(sum_i32x4[i], rounded_i32x4[i]);
        }
        const int16x8_t low_i16x8 = vcombine_s16(vmovn_s32(rounded_i32x4[0]), vmovn_s32(rounded_i32x4[1]));
        const int16x8_t high_i16x8 = vcombine_s16(vmovn_s32(rounded_i32x4[2]), vmovn_s32(rounded_i32x4[3]));
        const int8x16_t bytes = in_order(args.layout, vcombine_s8(vmovn_s16(low_i16x8), vmovn_s16(high_i16x8)));
        if (group.padded_count - at >= kStepColumns) {
            vst1q_s8(q + at, bytes);
        } else {
            std::memcpy(q + at, &bytes, static_cast<size_t>(group.padded_count - at));
        }
    }
    const int32x4_t sum = vaddq_s32(vaddq_s32(sum_i32x4[0], sum_i32x4[1]), vaddq_s32(sum_i32x4[2], sum_i32x4[3]));
    finish_int8(args, index, vaddvq_s32(sum), scale.scale);
}

}  // namespace

void act_quant(const PrepareArgs& args) {
    const bool per_token = args.spec->activation == Activation::token;
    Magnitudes token{kTokenFloor, true};
    for (int32_t index = 0; per_token && index < args.num_act_groups; ++index) {
        const Magnitudes group = magnitudes_of(args, args.act_groups[index]);
        token.largest = group.largest > token.largest ? group.largest : token.largest;
        token.finite = token.finite && group.finite;
    }
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        quantize_group(args, index, per_token ? token : magnitudes_of(args, args.act_groups[index]));
    }
}

}  // namespace tmac::neon
