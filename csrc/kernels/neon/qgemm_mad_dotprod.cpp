#include "kernels/neon/mad_panel.h"
#include "kernels/neon/mad_small.h"
#include "kernels/neon/mad_table.h"

// Codes times int8 activations by sdot, exact in int32: 4 rows times 4 columns per instruction.
//
//   vdotq_laneq_s32   sdot: adds 4 neighbouring products to int32      N1 0.5 cycle    V1 0.25
//
// A few tokens multiply codes that are unpacked in registers; more share an unpacked panel.

namespace tmac::neon {
namespace {

constexpr int32_t kLargestSmall = 2 * kMaxSmall;  ///< tokens up to which unpacking twice costs no more than a panel

struct DotProduct {
    static constexpr int kTokens = 4;

    static TMAC_ALWAYS_INLINE void put(uint8_t* step, int vector, int8x16_t first, int8x16_t second) {
        vst1q_s8(reinterpret_cast<int8_t*>(step) + vector * 16, first);
        vst1q_s8(reinterpret_cast<int8_t*>(step) + (kStripVectors + vector) * 16, second);
    }

    /// Four columns of 16 rows times those of M tokens.
    template <int Lane, int M>
    static TMAC_ALWAYS_INLINE void add(const uint8_t* codes, const int8x16_t (&q)[M], StripSums (&isum)[M]) {
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            const int8x16_t bytes = vld1q_s8(reinterpret_cast<const int8_t*>(codes) + vector * 16);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                isum[m][vector] = vdotq_laneq_s32(isum[m][vector], bytes, q[m], Lane);
            }
        }
    }

    template <class Codes, int M>
    static TMAC_ALWAYS_INLINE void multiply(const uint8_t (*panel)[kPanelStepBytes], int32_t steps, const int8_t* q,
                                            int64_t q_stride, StripSums (&isum)[M]) {
        constexpr int kHalf = kPanelStepBytes / 2;
        int8x16_t columns[M];
        int32_t step = 0;
        for (; step + 2 <= steps; step += 2) {
            TMAC_LOOP("panel", Codes::kBits, M, 2 * kPanelStepColumns, kStripRows);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                columns[m] = vld1q_s8(q + m * q_stride + step * kPanelStepColumns);
            }
            add<0, M>(panel[step], columns, isum);
            add<1, M>(panel[step] + kHalf, columns, isum);
            add<2, M>(panel[step + 1], columns, isum);
            add<3, M>(panel[step + 1] + kHalf, columns, isum);
        }
        if (step < steps) {
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                columns[m] = vcombine_s8(vld1_s8(q + m * q_stride + step * kPanelStepColumns), vdup_n_s8(0));
            }
            add<0, M>(panel[step], columns, isum);
            add<1, M>(panel[step] + kHalf, columns, isum);
        }
    }
};

struct Dotprod {
    template <class Codes, int Bits>
    static void run(const QgemmArgs& args) {
        args.m <= kLargestSmall ? qgemm_small<Codes, Bits>(args) : qgemm_panel<DotProduct, Codes, Bits>(args);
    }
};

constinit const Kernel rows[] = {TMAC_MAD_ROWS(Dotprod, "neon_dotprod", kNeon | kDotprod)};

}  // namespace

constinit const KernelTable qgemm_mad_dotprod = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::neon
