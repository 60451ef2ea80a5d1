#include <immintrin.h>

#include "kernels/avx2/kernels.h"

// The most that int8 dot products can give with AVX-VNNI: nothing but vpdpbusd. Twelve independent sums cover its 5
// cycles at two a cycle and leave registers for the operands.

namespace tmac::avx2 {
namespace {

constexpr int kSums = 12;

}  // namespace

int64_t dot_peak_vnni(int64_t rounds, int32_t* result) {
    const __m256i codes_u8x32 = _mm256_set1_epi32(*result);
    const __m256i act_i8x32 = _mm256_set1_epi32(*result + 1);
    __m256i sums_i32x8[kSums];
    for (int i = 0; i < kSums; ++i) {
        sums_i32x8[i] = _mm256_set1_epi32(*result + i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            sums_i32x8[i] = _mm256_dpbusd_avx_epi32(sums_i32x8[i], codes_u8x32, act_i8x32);
        }
    }
    for (int i = 1; i < kSums; ++i) {
        sums_i32x8[0] = _mm256_add_epi32(sums_i32x8[0], sums_i32x8[i]);
    }
    *result = _mm_cvtsi128_si32(_mm256_castsi256_si128(sums_i32x8[0]));
    return rounds * kSums * 32 * 2;
}

}  // namespace tmac::avx2
