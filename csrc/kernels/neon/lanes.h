#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "core/portable.h"

// Sixteen floats in four registers: what kernels/vector_math.h asks for.

namespace tmac::neon {
namespace {

struct Lanes {
    static constexpr int kAccumulators = 6;
    static constexpr int kRowSums = 5;
    static constexpr int kDots = 4;

    struct F {
        float32x4_t four[4];
    };

    /// One operation on all registers.
    template <class Op, class... Fs>
    static TMAC_ALWAYS_INLINE F each(const Op& op, const Fs&... a) {
        return {{op(a.four[0]...), op(a.four[1]...), op(a.four[2]...), op(a.four[3]...)}};
    }

    static TMAC_ALWAYS_INLINE void prefetch(const uint8_t* line) { TMAC_PREFETCH(line); }
    static TMAC_ALWAYS_INLINE F set1(float value) {
        const float32x4_t four = vdupq_n_f32(value);
        return {{four, four, four, four}};
    }
    static TMAC_ALWAYS_INLINE F load(const float* values) {
        return {{vld1q_f32(values), vld1q_f32(values + 4), vld1q_f32(values + 8), vld1q_f32(values + 12)}};
    }
    static TMAC_ALWAYS_INLINE F load_f16(const uint16_t* halves) {
        const uint16x8_t low = vld1q_u16(halves);
        const uint16x8_t high = vld1q_u16(halves + 8);
        const auto widen = [](uint16x4_t four) { return vcvt_f32_f16(vreinterpret_f16_u16(four)); };
        return {{widen(vget_low_u16(low)), widen(vget_high_u16(low)), widen(vget_low_u16(high)),
                 widen(vget_high_u16(high))}};
    }
    static TMAC_ALWAYS_INLINE F load_bf16(const uint16_t* halves) {
        const uint16x8_t low = vld1q_u16(halves);
        const uint16x8_t high = vld1q_u16(halves + 8);
        const auto widen = [](uint16x4_t four) { return vreinterpretq_f32_u32(vshll_n_u16(four, 16)); };
        return {{widen(vget_low_u16(low)), widen(vget_high_u16(low)), widen(vget_low_u16(high)),
                 widen(vget_high_u16(high))}};
    }
    static TMAC_ALWAYS_INLINE void store(float* to, const F& a) {
        for (int i = 0; i < 4; ++i) {
            vst1q_f32(to + 4 * i, a.four[i]);
        }
    }
    static TMAC_ALWAYS_INLINE void store_f16(uint16_t* to, const F& a) {
        for (int i = 0; i < 4; ++i) {
            vst1_u16(to + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.four[i])));
        }
    }

    static TMAC_ALWAYS_INLINE F add(const F& a, const F& b) {
        return each([](float32x4_t x, float32x4_t y) { return vaddq_f32(x, y); }, a, b);
    }
    static TMAC_ALWAYS_INLINE F subtract(const F& a, const F& b) {
        return each([](float32x4_t x, float32x4_t y) { return vsubq_f32(x, y); }, a, b);
    }
    static TMAC_ALWAYS_INLINE F multiply(const F& a, const F& b) {
        return each([](float32x4_t x, float32x4_t y) { return vmulq_f32(x, y); }, a, b);
    }
    static TMAC_ALWAYS_INLINE F divide(const F& a, const F& b) {
        return each([](float32x4_t x, float32x4_t y) { return vdivq_f32(x, y); }, a, b);
    }
    static TMAC_ALWAYS_INLINE F fma(const F& a, const F& b, const F& c) {
        return each([](float32x4_t x, float32x4_t y, float32x4_t z) { return vfmaq_f32(z, x, y); }, a, b, c);
    }
    static TMAC_ALWAYS_INLINE F max(const F& a, const F& b) {
        return each([](float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }, a, b);
    }
    static TMAC_ALWAYS_INLINE F abs(const F& a) {
        return each([](float32x4_t x) { return vabsq_f32(x); }, a);
    }
    static TMAC_ALWAYS_INLINE F copy_sign(const F& magnitude, const F& sign) {
        const auto copy = [](float32x4_t to, float32x4_t from) {
            return vbslq_f32(vdupq_n_u32(0x80000000U), from, to);
        };
        return each(copy, magnitude, sign);
    }
    static TMAC_ALWAYS_INLINE F shift_to_exponent(const F& a) {
        const auto shift = [](float32x4_t x) {
            const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(x), 23);
            return vreinterpretq_f32_u32(vaddq_u32(shifted, vdupq_n_u32(0x3f000000U)));
        };
        return each(shift, a);
    }
    static TMAC_ALWAYS_INLINE F select_less(const F& a, const F& b, const F& yes, const F& no) {
        const auto select = [](float32x4_t left, float32x4_t right, float32x4_t then, float32x4_t otherwise) {
            return vbslq_f32(vcltq_f32(left, right), then, otherwise);
        };
        return each(select, a, b, yes, no);
    }
    static TMAC_ALWAYS_INLINE F select_ordered(const F& a, const F& yes, const F& no) {
        const auto select = [](float32x4_t x, float32x4_t then, float32x4_t otherwise) {
            return vbslq_f32(vceqq_f32(x, x), then, otherwise);
        };
        return each(select, a, yes, no);
    }
    static TMAC_ALWAYS_INLINE F select_range(const F& inside, const F& outside, int32_t begin, int32_t end) {
        static constexpr int32_t kFirst[] = {0, 1, 2, 3};
        F result;
        for (int i = 0; i < 4; ++i) {
            const int32x4_t lane = vaddq_s32(vld1q_s32(kFirst), vdupq_n_s32(4 * i));
            const uint32x4_t chosen = vandq_u32(vcgeq_s32(lane, vdupq_n_s32(begin)), vcltq_s32(lane, vdupq_n_s32(end)));
            result.four[i] = vbslq_f32(chosen, inside.four[i], outside.four[i]);
        }
        return result;
    }

    // Multipliers are int16; the first bytes of the fours are one register, then the second ones.
    using Bytes = uint8x16x4_t;
    struct Dots {
        int32x4_t four[4];
    };
    using Four = int16x4_t;

    static TMAC_ALWAYS_INLINE Bytes load_bytes(const uint8_t* bytes) { return vld4q_u8(bytes); }
    static TMAC_ALWAYS_INLINE void store_multipliers(uint8_t* to, const F& integers) {
        for (int i = 0; i < 4; ++i) {
            vst1_s16(reinterpret_cast<int16_t*>(to) + 4 * i, vmovn_s32(vcvtq_s32_f32(integers.four[i])));
        }
    }
    static TMAC_ALWAYS_INLINE Four four(const uint8_t* sixteen, int index) {
        return vld1_s16(reinterpret_cast<const int16_t*>(sixteen) + 4 * index);
    }
    static TMAC_ALWAYS_INLINE Dots no_dots() {
        const int32x4_t zero = vdupq_n_s32(0);
        return {{zero, zero, zero, zero}};
    }
    template <int Lane>
    static TMAC_ALWAYS_INLINE Dots add_bytes(const Dots& dots, uint8x16_t bytes, Four four) {
        const int16x8_t low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(bytes)));
        const int16x8_t high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(bytes)));
        return {{vmlal_lane_s16(dots.four[0], vget_low_s16(low), four, Lane),
                 vmlal_lane_s16(dots.four[1], vget_high_s16(low), four, Lane),
                 vmlal_lane_s16(dots.four[2], vget_low_s16(high), four, Lane),
                 vmlal_lane_s16(dots.four[3], vget_high_s16(high), four, Lane)}};
    }
    static TMAC_ALWAYS_INLINE Dots add_dots(const Dots& dots, const Bytes& bytes, Four four) {
        Dots sums = add_bytes<0>(dots, bytes.val[0], four);
        sums = add_bytes<1>(sums, bytes.val[1], four);
        sums = add_bytes<2>(sums, bytes.val[2], four);
        return add_bytes<3>(sums, bytes.val[3], four);
    }
    static TMAC_ALWAYS_INLINE F dots_less(const Dots& dots, int32_t bias) {
        F result;
        for (int i = 0; i < 4; ++i) {
            result.four[i] = vcvtq_f32_s32(vsubq_s32(dots.four[i], vdupq_n_s32(bias)));
        }
        return result;
    }

    // Eight doubles: what kernels/vector_factor.h asks for.
    struct D {
        float64x2_t two[4];
    };

    template <class Op>
    static TMAC_ALWAYS_INLINE D make_f64(const Op& op) {
        return {{op(0), op(1), op(2), op(3)}};
    }
    static TMAC_ALWAYS_INLINE D set1_f64(double value) {
        return make_f64([&](int) { return vdupq_n_f64(value); });
    }
    static TMAC_ALWAYS_INLINE D load_f64(const double* values) {
        return make_f64([&](int i) { return vld1q_f64(values + 2 * i); });
    }
    static TMAC_ALWAYS_INLINE void store_f64(double* to, const D& a) {
        for (int i = 0; i < 4; ++i) {
            vst1q_f64(to + 2 * i, a.two[i]);
        }
    }
    static TMAC_ALWAYS_INLINE D multiply_f64(const D& a, const D& b) {
        return make_f64([&](int i) { return vmulq_f64(a.two[i], b.two[i]); });
    }
    static TMAC_ALWAYS_INLINE D less_product_f64(const D& c, const D& a, const D& b) {
        return make_f64([&](int i) { return vfmsq_f64(c.two[i], a.two[i], b.two[i]); });
    }

    static TMAC_ALWAYS_INLINE float fold(const F& a) {
        const float32x4_t low = vaddq_f32(a.four[0], a.four[2]);
        const float32x4_t high = vaddq_f32(a.four[1], a.four[3]);
        const float32x4_t four = vaddq_f32(low, high);
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
};

}  // namespace
}  // namespace tmac::neon
