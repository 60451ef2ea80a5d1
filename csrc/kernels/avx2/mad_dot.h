#pragma once

#include "kernels/avx2/simd.h"

// Four columns of eight rows times four activations, the one step in which the two tiers of the class `mad` differ.
//
//   intrinsic                  what it does here                                     Zen 4    Golden Cove
//   _mm256_maddubs_epi16       adds two columns' products to int16                   0.5 cyc  0.5 cyc
//   _mm256_madd_epi16          with ones: adds neighbours, int16 to int32            0.5      0.5
//   _mm256_dpbusd_avx_epi32    AVX-VNNI: adds four columns' products to int32        -        0.5
//
// The EVEX form of the last one, which CPUs with AVX-512 but no AVX-VNNI have, gives the same: TMAC_VNNI_EVEX takes it
// in the copy of that tier that the tests build.

namespace tmac::avx2 {
namespace {

inline constexpr int kLargestAct = 127;
inline constexpr int kLargestInt16 = 32767;

/// Without VNNI: products are summed in int16 as long as the codes' size allows, then widened. A code must stay below
/// 128, so that one pair fits; codes of 7 and 8 bits are multiplied in two digits of 4 bits.
struct Maddubs {
    static constexpr bool kWholeBytes = false;

    /// How many products of codes up to `largest` a sum holds.
    static constexpr int run(int largest) { return kLargestInt16 / (2 * largest * kLargestAct); }

    static TMAC_ALWAYS_INLINE __m256i add(__m256i sum, __m256i codes_u8x32, __m256i q_i8x32) {
        __m256i added = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes_u8x32, q_i8x32));
        TMAC_KEEP(added);
        return added;
    }

    static TMAC_ALWAYS_INLINE __m256i widen(__m256i sum_i16x16) {
        return _mm256_madd_epi16(sum_i16x16, _mm256_set1_epi16(1));
    }

    /// Adds two products of codes below 64 to int32 sums.
    static TMAC_ALWAYS_INLINE __m256i add_two(__m256i sum_i32x8, __m256i first_u8x32, __m256i first_i8x32,
                                              __m256i second_u8x32, __m256i second_i8x32) {
        const __m256i products_i16x16 = add(_mm256_maddubs_epi16(first_u8x32, first_i8x32), second_u8x32, second_i8x32);
        __m256i added = _mm256_add_epi32(sum_i32x8, widen(products_i16x16));
        TMAC_KEEP(added);
        return added;
    }
};

#ifdef TMAC_AVX2_VNNI
/// With VNNI: whole bytes, and the sums are int32 from the start.
struct Vnni {
    static constexpr bool kWholeBytes = true;

    /// An act group has at most 65536 columns, and 65536 * 255 * 127 fits an int32.
    static constexpr int run(int /*largest*/) { return INT32_MAX; }

    static TMAC_ALWAYS_INLINE __m256i add(__m256i sum, __m256i codes_u8x32, __m256i q_i8x32) {
#ifdef TMAC_VNNI_EVEX
        return _mm256_dpbusd_epi32(sum, codes_u8x32, q_i8x32);
#else
        return _mm256_dpbusd_avx_epi32(sum, codes_u8x32, q_i8x32);
#endif
    }

    static TMAC_ALWAYS_INLINE __m256i widen(__m256i sum_i32x8) { return sum_i32x8; }

    static TMAC_ALWAYS_INLINE __m256i add_two(__m256i sum_i32x8, __m256i first_u8x32, __m256i first_i8x32,
                                              __m256i second_u8x32, __m256i second_i8x32) {
        return add(add(sum_i32x8, first_u8x32, first_i8x32), second_u8x32, second_i8x32);
    }
};
#endif

}  // namespace
}  // namespace tmac::avx2
