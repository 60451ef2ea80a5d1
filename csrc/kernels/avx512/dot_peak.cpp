#include <immintrin.h>

#include "kernels/avx512/kernels.h"

// The most that int8 dot products can give: nothing but the instruction that goes from bytes to int32. vpdpbusd takes 4
// to 5 cycles and one or two start in a cycle, so sixteen independent sums keep every unit busy.

namespace tmac::avx512 {
namespace {

constexpr int kSums = 16;

}  // namespace

int64_t dot_peak(int64_t rounds, int32_t* result) {
    const __m512i codes_u8x64 = _mm512_set1_epi32(*result);
    const __m512i act_i8x64 = _mm512_set1_epi32(*result + 1);
    __m512i sums_i32x16[kSums];
    for (int i = 0; i < kSums; ++i) {
        sums_i32x16[i] = _mm512_set1_epi32(*result + i);
    }
    for (int64_t round = 0; round < rounds; ++round) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            sums_i32x16[i] = _mm512_dpbusd_epi32(sums_i32x16[i], codes_u8x64, act_i8x64);
        }
    }
    for (int i = 1; i < kSums; ++i) {
        sums_i32x16[0] = _mm512_add_epi32(sums_i32x16[0], sums_i32x16[i]);
    }
    *result = _mm_cvtsi128_si32(_mm512_castsi512_si128(sums_i32x16[0]));
    return rounds * kSums * 64 * 2;
}

}  // namespace tmac::avx512
