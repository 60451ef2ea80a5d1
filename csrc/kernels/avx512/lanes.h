#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/portable.h"

// Sixteen floats in one register: what kernels/vector_math.h asks for.

namespace tmac::avx512 {
namespace {

struct Lanes {
    static constexpr int kAccumulators = 16;
    static constexpr int kRowSums = 24;
    static constexpr int kDots = 8;

    using F = __m512;

    static TMAC_ALWAYS_INLINE void prefetch(const uint8_t* line) {
        _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
    }
    static TMAC_ALWAYS_INLINE F set1(float value) { return _mm512_set1_ps(value); }
    static TMAC_ALWAYS_INLINE F load(const float* values) { return _mm512_loadu_ps(values); }
    static TMAC_ALWAYS_INLINE F load_f16(const uint16_t* halves) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
    }
    static TMAC_ALWAYS_INLINE F load_bf16(const uint16_t* halves) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static TMAC_ALWAYS_INLINE void store(float* to, F a) { _mm512_storeu_ps(to, a); }
    static TMAC_ALWAYS_INLINE void store_f16(uint16_t* to, F a) {
        const __m256i halves = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
    }

    static TMAC_ALWAYS_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
    static TMAC_ALWAYS_INLINE F subtract(F a, F b) { return _mm512_sub_ps(a, b); }
    static TMAC_ALWAYS_INLINE F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
    static TMAC_ALWAYS_INLINE F divide(F a, F b) { return _mm512_div_ps(a, b); }
    static TMAC_ALWAYS_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static TMAC_ALWAYS_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }
    static TMAC_ALWAYS_INLINE F abs(F a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0F), a); }
    static TMAC_ALWAYS_INLINE F copy_sign(F magnitude, F sign) {
        const F sign_bit = _mm512_set1_ps(-0.0F);
        return _mm512_or_ps(_mm512_andnot_ps(sign_bit, magnitude), _mm512_and_ps(sign_bit, sign));
    }
    static TMAC_ALWAYS_INLINE F shift_to_exponent(F a) {
        const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(a), 23);
        return _mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_castps_si512(_mm512_set1_ps(0.5F))));
    }
    static TMAC_ALWAYS_INLINE F select_less(F a, F b, F yes, F no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
    }
    static TMAC_ALWAYS_INLINE F select_ordered(F a, F yes, F no) {
        return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, a, _CMP_ORD_Q), no, yes);
    }
    static TMAC_ALWAYS_INLINE F select_range(F inside, F outside, int32_t begin, int32_t end) {
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __mmask16 from = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(begin));
        return _mm512_mask_blend_ps(_mm512_mask_cmplt_epi32_mask(from, lane, _mm512_set1_epi32(end)), outside, inside);
    }

    // Sixteen multipliers are their high bytes, then their low bytes, which are signed: 256 high + low.
    using Bytes = __m512i;
    struct Dots {
        __m512i high;
        __m512i low;
    };
    struct Four {
        __m512i high;
        __m512i low;
    };

    static TMAC_ALWAYS_INLINE Bytes load_bytes(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
    static TMAC_ALWAYS_INLINE void store_multipliers(uint8_t* to, F integers) {
        const __m512i all = _mm512_cvtps_epi32(integers);
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(all, _mm512_set1_epi32(128)), 8);
        auto* sixteens = reinterpret_cast<__m128i*>(to);
        _mm_storeu_si128(sixteens, _mm512_cvtepi32_epi8(high));
        _mm_storeu_si128(sixteens + 1, _mm512_cvtepi32_epi8(all));
    }
    static TMAC_ALWAYS_INLINE Four four(const uint8_t* sixteen, int index) {
        int32_t high;
        int32_t low;
        std::memcpy(&high, sixteen + 4 * index, sizeof(high));
        std::memcpy(&low, sixteen + 16 + 4 * index, sizeof(low));
        return {_mm512_set1_epi32(high), _mm512_set1_epi32(low)};
    }
    static TMAC_ALWAYS_INLINE Dots no_dots() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
    static TMAC_ALWAYS_INLINE Dots add_dots(Dots dots, Bytes bytes, Four four) {
        dots.high = _mm512_dpbusd_epi32(dots.high, bytes, four.high);
        dots.low = _mm512_dpbusd_epi32(dots.low, bytes, four.low);
        TMAC_IN_ORDER(dots.high);
        TMAC_IN_ORDER(dots.low);
        return dots;
    }
    static TMAC_ALWAYS_INLINE F dots_less(Dots dots, int32_t bias) {
        const __m512i sums = _mm512_add_epi32(_mm512_slli_epi32(dots.high, 8), dots.low);
        return _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(bias)));
    }

    // Eight doubles: what kernels/vector_factor.h asks for.
    using D = __m512d;

    static TMAC_ALWAYS_INLINE D set1_f64(double value) { return _mm512_set1_pd(value); }
    static TMAC_ALWAYS_INLINE D load_f64(const double* values) { return _mm512_loadu_pd(values); }
    static TMAC_ALWAYS_INLINE void store_f64(double* to, D a) { _mm512_storeu_pd(to, a); }
    static TMAC_ALWAYS_INLINE D multiply_f64(D a, D b) { return _mm512_mul_pd(a, b); }
    static TMAC_ALWAYS_INLINE D less_product_f64(D c, D a, D b) { return _mm512_fnmadd_pd(a, b, c); }

    static TMAC_ALWAYS_INLINE float fold(F a) {
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

}  // namespace
}  // namespace tmac::avx512
