#include "kernels/scalar/kernels.h"

// The same in portable code: a byte, sign-extended, times an int32, added in int32. A sum is an operand of its own next
// round, so that no round can be computed ahead; eight sums are in flight.

namespace tmac::scalar {
namespace {

constexpr int kSums = 8;

}  // namespace

int64_t dot_peak(int64_t rounds, int32_t* result) {
    const int32_t act = *result;
    uint32_t sums[kSums];
    for (int i = 0; i < kSums; ++i) {
        sums[i] = static_cast<uint32_t>(*result + i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            sums[i] += static_cast<uint32_t>(static_cast<int8_t>(sums[i]) * act);
        }
    }
    for (int i = 1; i < kSums; ++i) {
        sums[0] += sums[i];
    }
    *result = static_cast<int32_t>(sums[0]);
    return rounds * kSums * 2;
}

}  // namespace tmac::scalar
