#include "kernels/neon/mad_panel.h"
#include "kernels/neon/mad_small.h"
#include "kernels/neon/mad_table.h"

// Codes times int8 activations by smmla, exact in int32: 2 rows times 2 tokens times 8 columns per instruction.
//
//   vmmlaq_s32          smmla: twice the products of sdot in the same time     N2 0.5 cycle    V1 0.25
//   vusdotq_laneq_s32   usdot: codes of 5 to 8 bits as they are, without taking the centre off them first
//
// A single row of tokens has nothing to pair, and a few are not worth the panel: they take the dot products.

namespace tmac::neon {
namespace {

constexpr int32_t kLargestSmall = kMaxSmall;

struct MatrixProduct {
    static constexpr int kTokens = 4;
    static constexpr int kRowPairs = kStripRows / 2;

    /// Rows 0 and 1 with their eight columns, then rows 2 and 3.
    static TMAC_ALWAYS_INLINE void put(uint8_t* step, int vector, int8x16_t first, int8x16_t second) {
        const int32x4_t a = vreinterpretq_s32_s8(first);
        const int32x4_t b = vreinterpretq_s32_s8(second);
        vst1q_s8(reinterpret_cast<int8_t*>(step) + vector * 32, vreinterpretq_s8_s32(vzip1q_s32(a, b)));
        vst1q_s8(reinterpret_cast<int8_t*>(step) + vector * 32 + 16, vreinterpretq_s8_s32(vzip2q_s32(a, b)));
    }

    /// Eight columns of 16 rows times those of pairs of tokens.
    template <int Pairs>
    static TMAC_ALWAYS_INLINE void add(const uint8_t* step, const int8x16_t (&columns)[Pairs],
                                       int32x4_t (&sums)[Pairs][kRowPairs]) {
        TMAC_UNROLL
        for (int rows = 0; rows < kRowPairs; ++rows) {
            const int8x16_t codes = vld1q_s8(reinterpret_cast<const int8_t*>(step) + rows * 16);
            TMAC_UNROLL
            for (int pair = 0; pair < Pairs; ++pair) {
                sums[pair][rows] = vmmlaq_s32(sums[pair][rows], codes, columns[pair]);
            }
        }
    }

    /// A sum holds row 0 of both tokens of a pair, then row 1. An odd token is its own partner.
    template <class Codes, int M>
    static TMAC_ALWAYS_INLINE void multiply(const uint8_t (*panel)[kPanelStepBytes], int32_t steps, const int8_t* q,
                                            int64_t q_stride, StripSums (&isum)[M]) {
        constexpr int kTokenPairs = (M + 1) / 2;
        constexpr int kPartner = M == 1 ? 0 : 1;
        int32x4_t sums[kTokenPairs][kRowPairs];
        TMAC_UNROLL
        for (int i = 0; i < kTokenPairs * kStripVectors; ++i) {
            const int pair = i / kStripVectors;
            const int vector = i % kStripVectors;
            const int32x4_t first = isum[2 * pair][vector];
            const int32x4_t second = isum[2 * pair + kPartner][vector];
            sums[pair][2 * vector] = vzip1q_s32(first, second);
            sums[pair][2 * vector + 1] = vzip2q_s32(first, second);
        }
        int32_t step = 0;
        for (; step + 2 <= steps; step += 2) {
            TMAC_LOOP("panel", Codes::kBits, M, 2 * kPanelStepColumns, kStripRows);
            int64x2_t first[kTokenPairs];
            int64x2_t second[kTokenPairs];
            TMAC_UNROLL
            for (int pair = 0; pair < kTokenPairs; ++pair) {
                const int8_t* token = q + 2 * pair * q_stride + step * kPanelStepColumns;
                first[pair] = vreinterpretq_s64_s8(vld1q_s8(token));
                second[pair] = vreinterpretq_s64_s8(vld1q_s8(token + kPartner * q_stride));
            }
            int8x16_t columns[kTokenPairs];
            TMAC_UNROLL
            for (int pair = 0; pair < kTokenPairs; ++pair) {
                columns[pair] = vreinterpretq_s8_s64(vzip1q_s64(first[pair], second[pair]));
            }
            add<kTokenPairs>(panel[step], columns, sums);
            TMAC_UNROLL
            for (int pair = 0; pair < kTokenPairs; ++pair) {
                columns[pair] = vreinterpretq_s8_s64(vzip2q_s64(first[pair], second[pair]));
            }
            add<kTokenPairs>(panel[step + 1], columns, sums);
        }
        if (step < steps) {
            int8x16_t columns[kTokenPairs];
            TMAC_UNROLL
            for (int pair = 0; pair < kTokenPairs; ++pair) {
                const int8_t* token = q + 2 * pair * q_stride + step * kPanelStepColumns;
                columns[pair] = vcombine_s8(vld1_s8(token), vld1_s8(token + kPartner * q_stride));
            }
            add<kTokenPairs>(panel[step], columns, sums);
        }
        TMAC_UNROLL
        for (int i = 0; i < kTokenPairs * kStripVectors; ++i) {
            const int pair = i / kStripVectors;
            const int vector = i % kStripVectors;
            const int32x4_t rows01 = sums[pair][2 * vector];
            const int32x4_t rows23 = sums[pair][2 * vector + 1];
            isum[2 * pair][vector] = vuzp1q_s32(rows01, rows23);
            if constexpr (kPartner == 1) {
                isum[2 * pair + 1][vector] = vuzp2q_s32(rows01, rows23);
            }
        }
    }
};

template <class Codes>
struct Unsigned {
    using Type = Codes;
};
template <int Bits>
struct Unsigned<Nibbles<Bits>> {
    using Type = Nibbles<Bits, true>;
};

struct I8mm {
    template <class Codes, int Bits>
    static void run(const QgemmArgs& args) {
        args.m <= kLargestSmall ? qgemm_small<typename Unsigned<Codes>::Type, Bits>(args)
                                : qgemm_panel<MatrixProduct, Codes, Bits>(args);
    }
};

constinit const Kernel rows[] = {TMAC_MAD_ROWS(I8mm, "neon_i8mm", kNeon | kDotprod | kI8mm)};

}  // namespace

constinit const KernelTable qgemm_mad_i8mm = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::neon
