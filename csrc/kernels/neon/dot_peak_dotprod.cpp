#include "kernels/neon/kernels.h"
#include "kernels/neon/simd.h"

// The most that int8 dot products can give with dotprod: nothing but sdot. Sixteen independent sums cover 4 cycles at
// four a cycle.

namespace tmac::neon {
namespace {

constexpr int kSums = 16;

}  // namespace

int64_t dot_peak_dotprod(int64_t rounds, int32_t* result) {
    const int8x16_t codes = vreinterpretq_s8_s32(vdupq_n_s32(*result));
    const int8x16_t act = vreinterpretq_s8_s32(vdupq_n_s32(*result + 1));
    int32x4_t sums[kSums];
    for (int i = 0; i < kSums; ++i) {
        sums[i] = vdupq_n_s32(*result + i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            sums[i] = vdotq_s32(sums[i], codes, act);
        }
    }
    for (int i = 1; i < kSums; ++i) {
        sums[0] = vaddq_s32(sums[0], sums[i]);
    }
    *result = vgetq_lane_s32(sums[0], 0);
    return rounds * kSums * 16 * 2;
}

}  // namespace tmac::neon
