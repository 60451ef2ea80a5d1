#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/portable.h"

// Sixteen floats in two registers: what kernels/vector_math.h asks for.

namespace tmac::avx2 {
namespace {

struct Lanes {
    static constexpr int kAccumulators = 6;
    static constexpr int kRowSums = 5;
    static constexpr int kDots = 2;

    struct F {
        __m256 low;
        __m256 high;
    };

    /// One operation on both registers.
    template <class Op, class... Fs>
    static TMAC_ALWAYS_INLINE F both(const Op& op, const Fs&... a) {
        return {op(a.low...), op(a.high...)};
    }

    static TMAC_ALWAYS_INLINE void prefetch(const uint8_t* line) {
        _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
    }
    static TMAC_ALWAYS_INLINE F set1(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static TMAC_ALWAYS_INLINE F load(const float* values) {
        return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
    }
    static TMAC_ALWAYS_INLINE F load_f16(const uint16_t* halves) {
        const auto* eights = reinterpret_cast<const __m128i*>(halves);
        return {_mm256_cvtph_ps(_mm_loadu_si128(eights)), _mm256_cvtph_ps(_mm_loadu_si128(eights + 1))};
    }
    static TMAC_ALWAYS_INLINE F load_bf16(const uint16_t* halves) {
        const auto widen = [](const uint16_t* eight) {
            const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(eight)));
            return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
        };
        return {widen(halves), widen(halves + 8)};
    }
    static TMAC_ALWAYS_INLINE void store(float* to, F a) {
        _mm256_storeu_ps(to, a.low);
        _mm256_storeu_ps(to + 8, a.high);
    }
    static TMAC_ALWAYS_INLINE void store_f16(uint16_t* to, F a) {
        auto* eights = reinterpret_cast<__m128i*>(to);
        _mm_storeu_si128(eights, _mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm_storeu_si128(eights + 1, _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }

    static TMAC_ALWAYS_INLINE F add(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
    static TMAC_ALWAYS_INLINE F subtract(F a, F b) {
        return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
    }
    static TMAC_ALWAYS_INLINE F multiply(F a, F b) {
        return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
    }
    static TMAC_ALWAYS_INLINE F divide(F a, F b) {
        return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
    }
    static TMAC_ALWAYS_INLINE F fma(F a, F b, F c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    static TMAC_ALWAYS_INLINE F max(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
    static TMAC_ALWAYS_INLINE F abs(F a) {
        return both([](__m256 half) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), half); }, a);
    }
    static TMAC_ALWAYS_INLINE F copy_sign(F magnitude, F sign) {
        const auto copy = [](__m256 to, __m256 from) {
            const __m256 sign_bit = _mm256_set1_ps(-0.0F);
            return _mm256_or_ps(_mm256_andnot_ps(sign_bit, to), _mm256_and_ps(sign_bit, from));
        };
        return both(copy, magnitude, sign);
    }
    static TMAC_ALWAYS_INLINE F shift_to_exponent(F a) {
        const auto shift = [](__m256 half) {
            const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(half), 23);
            return _mm256_castsi256_ps(_mm256_add_epi32(shifted, _mm256_castps_si256(_mm256_set1_ps(0.5F))));
        };
        return both(shift, a);
    }
    static TMAC_ALWAYS_INLINE F select_less(F a, F b, F yes, F no) {
        const auto select = [](__m256 left, __m256 right, __m256 then, __m256 otherwise) {
            return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(left, right, _CMP_LT_OQ));
        };
        return both(select, a, b, yes, no);
    }
    static TMAC_ALWAYS_INLINE F select_ordered(F a, F yes, F no) {
        const auto select = [](__m256 value, __m256 then, __m256 otherwise) {
            return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(value, value, _CMP_ORD_Q));
        };
        return both(select, a, yes, no);
    }
    static TMAC_ALWAYS_INLINE F select_range(F inside, F outside, int32_t begin, int32_t end) {
        const auto select = [](__m256 in, __m256 out, int32_t from, int32_t to) {
            const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            const __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(from), lane);
            const __m256i chosen = _mm256_andnot_si256(below, _mm256_cmpgt_epi32(_mm256_set1_epi32(to), lane));
            return _mm256_blendv_ps(out, in, _mm256_castsi256_ps(chosen));
        };
        return {select(inside.low, outside.low, begin, end), select(inside.high, outside.high, begin - 8, end - 8)};
    }

    // Multipliers are int16. A register of Dots is four sums in two parts each.
    using Bytes = const uint8_t*;
    struct Dots {
        __m256i fours[4];
    };
    using Four = __m256i;

    static TMAC_ALWAYS_INLINE Bytes load_bytes(const uint8_t* bytes) { return bytes; }
    static TMAC_ALWAYS_INLINE void store_multipliers(uint8_t* to, F integers) {
        const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(integers.low), _mm256_cvtps_epi32(integers.high));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    static TMAC_ALWAYS_INLINE Four four(const uint8_t* sixteen, int index) {
        int64_t four;
        std::memcpy(&four, sixteen + 8 * index, sizeof(four));
        return _mm256_set1_epi64x(four);
    }
    static TMAC_ALWAYS_INLINE Dots no_dots() {
        const __m256i zero = _mm256_setzero_si256();
        return {{zero, zero, zero, zero}};
    }
    static TMAC_ALWAYS_INLINE Dots add_dots(const Dots& dots, Bytes bytes, Four four) {
        const auto add = [&](int i) {
            const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes) + i);
            return _mm256_add_epi32(dots.fours[i], _mm256_madd_epi16(_mm256_cvtepu8_epi16(sixteen), four));
        };
        return {{add(0), add(1), add(2), add(3)}};
    }
    static TMAC_ALWAYS_INLINE F dots_less(const Dots& dots, int32_t bias) {
        const auto eight = [&](__m256i low, __m256i high) {
            const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(low, high), 0xd8);
            return _mm256_cvtepi32_ps(_mm256_sub_epi32(sums, _mm256_set1_epi32(bias)));
        };
        return {eight(dots.fours[0], dots.fours[1]), eight(dots.fours[2], dots.fours[3])};
    }

    // Eight doubles: what kernels/vector_factor.h asks for.
    struct D {
        __m256d low;
        __m256d high;
    };

    static TMAC_ALWAYS_INLINE D set1_f64(double value) { return {_mm256_set1_pd(value), _mm256_set1_pd(value)}; }
    static TMAC_ALWAYS_INLINE D load_f64(const double* values) {
        return {_mm256_loadu_pd(values), _mm256_loadu_pd(values + 4)};
    }
    static TMAC_ALWAYS_INLINE void store_f64(double* to, D a) {
        _mm256_storeu_pd(to, a.low);
        _mm256_storeu_pd(to + 4, a.high);
    }
    static TMAC_ALWAYS_INLINE D multiply_f64(D a, D b) {
        return {_mm256_mul_pd(a.low, b.low), _mm256_mul_pd(a.high, b.high)};
    }
    static TMAC_ALWAYS_INLINE D less_product_f64(D c, D a, D b) {
        return {_mm256_fnmadd_pd(a.low, b.low, c.low), _mm256_fnmadd_pd(a.high, b.high, c.high)};
    }

    static TMAC_ALWAYS_INLINE float fold(F a) {
        const __m256 eight = _mm256_add_ps(a.low, a.high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
};

}  // namespace
}  // namespace tmac::avx2
