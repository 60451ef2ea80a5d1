#include "kernels/neon/mad_panel.h"
#include "kernels/neon/mad_table.h"

// Codes times int8 activations without dot products, exact in int32: CPUs of the first ARMv8 (Cortex-A72).
//
//   vmull_s8, vmlal_s8          smull, smlal: 8 products to int16, added to 8 others
//   vmull_high_s8, vmlal_high   the same for the upper 8 bytes
//   vpadalq_s16                 sadalp: adds neighbouring int16 to int32
//
// The lower 8 bytes of a code vector are rows 0 and 1, four columns each. Products of columns 0..3 and of columns 4..7
// of a row meet in the same int16 lane: |s| <= 128 and |q| <= 127, so two of them stay within 32512; codes of at most 4
// bits are at most 15, and sixteen products stay within 30480.

namespace tmac::neon {
namespace {

/// int16 sums of 4 rows: lanes 0..3 are row 0 (2), lanes 4..7 row 1 (3).
struct Products {
    int16x8_t low;
    int16x8_t high;
};

TMAC_ALWAYS_INLINE void add_products(Products& sum, int8x16_t codes, int8x16_t q) {
    sum.low = vmlal_s8(sum.low, vget_low_s8(codes), vget_low_s8(q));
    sum.high = vmlal_high_s8(sum.high, codes, q);
}

struct WideningProduct {
    static constexpr int kTokens = 1;

    static TMAC_ALWAYS_INLINE void put(uint8_t* step, int vector, int8x16_t first, int8x16_t second) {
        vst1q_s8(reinterpret_cast<int8_t*>(step) + vector * 16, first);
        vst1q_s8(reinterpret_cast<int8_t*>(step) + (kStripVectors + vector) * 16, second);
    }

    template <class Codes, int M>
    static TMAC_ALWAYS_INLINE void multiply(const uint8_t (*panel)[kPanelStepBytes], int32_t steps, const int8_t* q,
                                            int64_t /*q_stride*/, StripSums (&isum)[M]) {
        static_assert(M == 1);
        constexpr int32_t kStepsAtOnce = Codes::kSmall ? 8 : 1;
        Products wide[kStripVectors];
        int32x4_t low_i32x4[kStripVectors];
        int32x4_t high_i32x4[kStripVectors];
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            low_i32x4[vector] = high_i32x4[vector] = vdupq_n_s32(0);
        }
        for (int32_t done = 0; done < steps; done += kStepsAtOnce) {
            const int32_t end = done + kStepsAtOnce < steps ? done + kStepsAtOnce : steps;
            TMAC_UNROLL
            for (int vector = 0; vector < kStripVectors; ++vector) {
                wide[vector] = {vdupq_n_s16(0), vdupq_n_s16(0)};
            }
            for (int32_t step = done; step < end; ++step) {
                TMAC_LOOP("panel", Codes::kBits, 1, kPanelStepColumns, kStripRows);
                const auto* codes = reinterpret_cast<const int8_t*>(panel[step]);
                const int8x16_t first = repeat_four(q + step * kPanelStepColumns);
                const int8x16_t second = repeat_four(q + step * kPanelStepColumns + 4);
                TMAC_UNROLL
                for (int vector = 0; vector < kStripVectors; ++vector) {
                    add_products(wide[vector], vld1q_s8(codes + vector * 16), first);
                    add_products(wide[vector], vld1q_s8(codes + (kStripVectors + vector) * 16), second);
                }
            }
            TMAC_UNROLL
            for (int vector = 0; vector < kStripVectors; ++vector) {
                low_i32x4[vector] = vpadalq_s16(low_i32x4[vector], wide[vector].low);
                high_i32x4[vector] = vpadalq_s16(high_i32x4[vector], wide[vector].high);
            }
        }
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            isum[0][vector] = vaddq_s32(isum[0][vector], vpaddq_s32(low_i32x4[vector], high_i32x4[vector]));
        }
    }
};

struct Plain {
    template <class Codes, int Bits>
    static void run(const QgemmArgs& args) {
        qgemm_panel<WideningProduct, Codes, Bits>(args);
    }
};

constinit const Kernel rows[] = {TMAC_MAD_ROWS(Plain, "neon", kNeon)};

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::neon
