#pragma once

#include <arm_neon.h>

#include <cstring>

#include "kernels/shared.h"

// What the NEON kernels share: registers of floats, loads and stores with tails.

// benchmarks/mca.py finds an inner loop by this label, which stands in the objects of a build with TMAC_MARK_LOOPS
// only. `columns` and `rows`: what one turn of the loop multiplies with `tokens` tokens.
#if defined(TMAC_MARK_LOOPS)
#define TMAC_LOOP(method, bits, tokens, columns, rows) \
    __asm__ volatile("tmac_loop." method ".w%c0.m%c1.c%c2.r%c3.%=:" ::"i"(bits), "i"(tokens), "i"(columns), "i"(rows))
#else
#define TMAC_LOOP(method, bits, tokens, columns, rows)
#endif

namespace tmac::neon {
namespace {

inline constexpr int32_t kLanes = 4;

/// The operations that kernels/shared.h asks for.
struct Floats {
    using F = float32x4_t;
    using I = int32x4_t;

    static TMAC_ALWAYS_INLINE F set1(float value) { return vdupq_n_f32(value); }
    static TMAC_ALWAYS_INLINE F to_float(I values) { return vcvtq_f32_s32(values); }
    static TMAC_ALWAYS_INLINE F subtract(F a, F b) { return vsubq_f32(a, b); }
    static TMAC_ALWAYS_INLINE F multiply(F a, F b) { return vmulq_f32(a, b); }
    static TMAC_ALWAYS_INLINE F multiply_add(F a, F b, F c) { return vfmaq_f32(c, a, b); }
    static TMAC_ALWAYS_INLINE F multiply_subtract(F a, F b, F c) { return vfmaq_f32(vnegq_f32(c), a, b); }
    static TMAC_ALWAYS_INLINE F load(const float* values) { return vld1q_f32(values); }
    static TMAC_ALWAYS_INLINE F widen(const uint16_t* halves) {
        return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
    }
    static TMAC_ALWAYS_INLINE F widen(const uint8_t* bytes) {
        uint32_t four = 0;
        std::memcpy(&four, bytes, sizeof(four));
        const uint16x8_t wide_u16x8 = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
        return vcvtq_f32_u32(vmovl_u16(vget_low_u16(wide_u16x8)));
    }
    static TMAC_ALWAYS_INLINE F widen(const int8_t* bytes) {
        uint32_t four = 0;
        std::memcpy(&four, bytes, sizeof(four));
        const int16x8_t wide_i16x8 = vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four)));
        return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide_i16x8)));
    }
};

/// Rows [row, min(row + 4, end)) of one token.
TMAC_ALWAYS_INLINE void store_rows(float* y, int64_t row, int64_t end, float32x4_t values) {
    const int64_t left = end - row;
    if (left >= kLanes) {
        vst1q_f32(y + row, values);
    } else if (left > 0) {
        float lanes[kLanes];
        vst1q_f32(lanes, values);
        std::memcpy(y + row, lanes, static_cast<size_t>(left) * sizeof(float));
    }
}

inline constexpr int32_t kStepColumns = 16;

/// Columns [at, at + 16) of an act group, zero past its end: where they stand, or copied to `padded`.
TMAC_ALWAYS_INLINE const float* columns_at(const float* x, const ActGroup& group, int32_t at,
                                           float (&padded)[kStepColumns]) {
    const int32_t left = group.k_count - at;
    const float* columns = x + group.k_begin + at;
    if (left >= kStepColumns) {
        return columns;
    }
    std::memset(padded, 0, sizeof(padded));
    if (left > 0) {
        std::memcpy(padded, columns, static_cast<size_t>(left) * sizeof(float));
    }
    return padded;
}

}  // namespace
}  // namespace tmac::neon
