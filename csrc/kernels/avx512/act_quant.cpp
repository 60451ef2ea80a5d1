#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// int8 activations of the class `mad`, one scale per act group or per token (docs/numerics.md).

namespace tmac::avx512 {
namespace {

constexpr float kTokenFloor = 1e-5F;  ///< BitNet's clamp of a token's largest activation

struct Magnitudes {
    float largest;
    bool finite;
};

constexpr int kMostSteps = 8;  ///< registers that hold an act group of 128 columns

/// NaN and infinities are all that is not below infinity in magnitude, as integers too.
TMAC_ALWAYS_INLINE __m512i larger(__m512i largest_lanes, __m512 columns) {
    const __m512i bits = _mm512_and_si512(_mm512_castps_si512(columns), _mm512_set1_epi32(INT32_MAX));
    return _mm512_max_epu32(largest_lanes, bits);
}

TMAC_ALWAYS_INLINE Magnitudes magnitudes_of(__m512i largest_lanes) {
    const auto bits = static_cast<uint32_t>(_mm512_reduce_max_epu32(largest_lanes));
    float largest = 0.0F;
    std::memcpy(&largest, &bits, sizeof(largest));
    return {largest, bits < 0x7f800000U};
}

Magnitudes magnitudes_of(const PrepareArgs& args, const ActGroup& group) {
    __m512i largest_lanes = _mm512_setzero_si512();
    for (int32_t at = 0; at < group.k_count; at += kLanes) {
        largest_lanes = larger(largest_lanes, load_columns(args.x, group, at));
    }
    return magnitudes_of(largest_lanes);
}

/// Layout::wide_quads and Layout::bands want column 4i + j of sixteen at byte 4j + i (mad_codes.h).
TMAC_ALWAYS_INLINE __m128i in_order(Layout layout, __m128i sixteen) {
    const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return layout == Layout::wide_quads || layout == Layout::bands ? _mm_shuffle_epi8(sixteen, transposed) : sixteen;
}

/// The first `count` groups of four bytes, `step` apart.
TMAC_ALWAYS_INLINE void store_fours(int8_t* q, int64_t step, __m128i bytes, int32_t count) {
    if (step == 4 && count == 4) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(q), bytes);
        return;
    }
    if (count == 4) {
        _mm_storeu_si32(q, bytes);
        _mm_storeu_si32(q + step, _mm_shuffle_epi32(bytes, 1));
        _mm_storeu_si32(q + 2 * step, _mm_shuffle_epi32(bytes, 2));
        _mm_storeu_si32(q + 3 * step, _mm_shuffle_epi32(bytes, 3));
        return;
    }
    alignas(16) int8_t fours[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(fours), bytes);
    for (int32_t i = 0; i < count; ++i) {
        std::memcpy(q + i * step, fours + 4 * i, 4);
    }
}

void quantize_group(const PrepareArgs& args, int32_t index, const Magnitudes& magnitudes) {
    const ActGroup& group = args.act_groups[index];
    if (!magnitudes.finite) {
        refuse_int8(args, index);
        return;
    }
    const ActScale scale = act_scale_of(magnitudes.largest);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin / 4 * args.act_step;
    __m512i sum_i32x16 = _mm512_setzero_si512();
    for (int32_t at = 0; at < group.padded_count; at += kLanes) {
        const __m512 scaled = _mm512_mul_ps(load_columns(args.x, group, at), _mm512_set1_ps(scale.inverse));
        const __m512i rounded_i32x16 = _mm512_cvtps_epi32(scaled);
        sum_i32x16 = _mm512_add_epi32(sum_i32x16, rounded_i32x16);
        const __m128i bytes = in_order(args.layout, _mm512_cvtepi32_epi8(rounded_i32x16));
        const int32_t left = group.padded_count - at;  // a multiple of 4
        store_fours(q, args.act_step, bytes, left >= kLanes ? 4 : left / 4);
        q += 4 * args.act_step;
    }
    finish_int8(args, index, _mm512_reduce_add_epi32(sum_i32x16), scale.scale);
}

/// An act group of 128 columns: everything stays in registers.
void quantize_full_group(const PrepareArgs& args, int32_t index) {
    const ActGroup& group = args.act_groups[index];
    __m512 columns[kMostSteps];
    __m512i largest_lanes[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    TMAC_UNROLL
    for (int i = 0; i < kMostSteps; ++i) {
        columns[i] = _mm512_loadu_ps(args.x + group.k_begin + kLanes * i);
        largest_lanes[i % 2] = larger(largest_lanes[i % 2], columns[i]);
    }
    const Magnitudes magnitudes = magnitudes_of(_mm512_max_epu32(largest_lanes[0], largest_lanes[1]));
    if (!magnitudes.finite) {
        refuse_int8(args, index);
        return;
    }
    const ActScale scale = act_scale_of(magnitudes.largest);
    const __m512 inverse = _mm512_set1_ps(scale.inverse);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin / 4 * args.act_step;
    __m512i sum_i32x16 = _mm512_setzero_si512();
    TMAC_UNROLL
    for (int i = 0; i < kMostSteps; ++i) {
        const __m512i rounded_i32x16 = _mm512_cvtps_epi32(_mm512_mul_ps(columns[i], inverse));
        sum_i32x16 = _mm512_add_epi32(sum_i32x16, rounded_i32x16);
        store_fours(q, args.act_step, in_order(args.layout, _mm512_cvtepi32_epi8(rounded_i32x16)), 4);
        q += 4 * args.act_step;
    }
    finish_int8(args, index, _mm512_reduce_add_epi32(sum_i32x16), scale.scale);
}

}  // namespace

void act_quant(const PrepareArgs& args) {
    const bool per_token = args.spec->activation == Activation::token;
    Magnitudes token{kTokenFloor, true};
    for (int32_t index = 0; per_token && index < args.num_act_groups; ++index) {
        const Magnitudes group = magnitudes_of(args, args.act_groups[index]);
        token.largest = group.largest > token.largest ? group.largest : token.largest;
        token.finite = token.finite && group.finite;
    }
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        const ActGroup& group = args.act_groups[index];
        if (!per_token && group.k_count == kMostSteps * kLanes && group.padded_count == group.k_count) {
            quantize_full_group(args, index);
        } else {
            quantize_group(args, index, per_token ? token : magnitudes_of(args, group));
        }
    }
}

}  // namespace tmac::avx512
