#include <immintrin.h>

#include "kernels/avx2/kernels.h"

// The most that int8 dot products can give without VNNI: vpmaddubsw, eight results summed in int16 (codes of up to 4
// bits: 8 * 2 * 15 * 127 < 32768), then vpmaddwd with ones and vpaddd.
//
// A sum is an operand of its own next round: a product that is the same in every round would leave the loop. Eight sums
// in flight gave the most (4: 302, 6: 323, 8: 346 of the 410 GOPS that two products a cycle allow, Zen 4); each
// activation takes both sides of the product, so that nearly all operands fit the sixteen registers.

namespace tmac::avx2 {
namespace {

constexpr int kSums = 8;
constexpr int kActs = 4;
constexpr int kProducts = 2 * kActs;

TMAC_ALWAYS_INLINE __m256i eight_products(__m256i x, const __m256i* acts) {
    __m256i sum_i16x16 = _mm256_maddubs_epi16(x, acts[0]);
    TMAC_UNROLL
    for (int i = 1; i < kActs; ++i) {
        sum_i16x16 = _mm256_add_epi16(sum_i16x16, _mm256_maddubs_epi16(x, acts[i]));
    }
    TMAC_UNROLL
    for (int i = 0; i < kActs; ++i) {
        sum_i16x16 = _mm256_add_epi16(sum_i16x16, _mm256_maddubs_epi16(acts[i], x));
    }
    return sum_i16x16;
}

}  // namespace

int64_t dot_peak(int64_t rounds, int32_t* result) {
    const __m256i ones_i16x16 = _mm256_set1_epi16(1);
    __m256i acts[kActs];
    for (int i = 0; i < kActs; ++i) {
        acts[i] = _mm256_set1_epi32(*result + i);
    }
    __m256i sums_i32x8[kSums];
    for (int i = 0; i < kSums; ++i) {
        sums_i32x8[i] = _mm256_set1_epi32(*result - i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            const __m256i sum_i16x16 = eight_products(sums_i32x8[i], acts);
            sums_i32x8[i] = _mm256_add_epi32(sums_i32x8[i], _mm256_madd_epi16(sum_i16x16, ones_i16x16));
        }
    }
    for (int i = 1; i < kSums; ++i) {
        sums_i32x8[0] = _mm256_add_epi32(sums_i32x8[0], sums_i32x8[i]);
    }
    *result = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums_i32x8[0]));
    return rounds * kSums * kProducts * 32 * 2;
}

}  // namespace tmac::avx2
