#include "kernels/neon/kernels.h"
#include "kernels/neon/simd.h"

// The most that int8 dot products can give without an extension: smull, smlal2 and sadalp, 16 products in three
// instructions, added up in int32. Twelve independent sums cover the latency;
// a sum is an operand of its own next round, so that no product leaves the loop.

namespace tmac::neon {
namespace {

constexpr int kSums = 12;

}  // namespace

int64_t dot_peak(int64_t rounds, int32_t* result) {
    const int8x16_t act = vreinterpretq_s8_s32(vdupq_n_s32(*result + 1));
    int32x4_t sums[kSums];
    for (int i = 0; i < kSums; ++i) {
        sums[i] = vdupq_n_s32(*result + i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            const int8x16_t own = vreinterpretq_s8_s32(sums[i]);
            const int16x8_t low = vmull_s8(vget_low_s8(own), vget_low_s8(act));
            sums[i] = vpadalq_s16(sums[i], vmlal_high_s8(low, own, act));
        }
    }
    for (int i = 1; i < kSums; ++i) {
        sums[0] = vaddq_s32(sums[0], sums[i]);
    }
    *result = vgetq_lane_s32(sums[0], 0);
    return rounds * kSums * 16 * 2;
}

}  // namespace tmac::neon
