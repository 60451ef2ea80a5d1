#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// int8 activations of the class `mad`, one scale per act group or per token (docs/numerics.md).

namespace tmac::avx2 {
namespace {

constexpr float kTokenFloor = 1e-5F;  ///< BitNet's clamp of a token's largest activation
constexpr int32_t kStep = 32;         ///< columns per pass of the loops
constexpr int32_t kActGroup = 128;    ///< columns of most act groups

struct Magnitudes {
    float largest;
    bool finite;
};

TMAC_ALWAYS_INLINE __m256i magnitude_bits(const PrepareArgs& args, const ActGroup& group, int32_t at) {
    return _mm256_castps_si256(abs_ps(load_columns(args.x, group, at)));
}

/// The largest of non-negative floats, NaN above all, is that of the same bits as integers.
TMAC_ALWAYS_INLINE Magnitudes magnitudes_of(const PrepareArgs& args, const ActGroup& group) {
    __m256i largest_i32x8[kStep / kLanes];
    for (__m256i& lanes : largest_i32x8) {
        lanes = _mm256_setzero_si256();
    }
    int32_t at = 0;
    for (; at + kStep <= group.k_count; at += kStep) {
        TMAC_UNROLL
        for (int i = 0; i < kStep / kLanes; ++i) {
            const __m256 columns = _mm256_loadu_ps(args.x + group.k_begin + at + i * kLanes);
            largest_i32x8[i] = _mm256_max_epi32(largest_i32x8[i], _mm256_castps_si256(abs_ps(columns)));
        }
    }
    for (; at < group.k_count; at += kLanes) {
        largest_i32x8[0] = _mm256_max_epi32(largest_i32x8[0], magnitude_bits(args, group, at));
    }
    const __m256i eight = _mm256_max_epi32(_mm256_max_epi32(largest_i32x8[0], largest_i32x8[1]),
                                           _mm256_max_epi32(largest_i32x8[2], largest_i32x8[3]));
    __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    const int32_t bits = _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 1)));
    float largest = 0.0F;
    std::memcpy(&largest, &bits, sizeof(largest));
    return {largest, bits < 0x7f800000};
}

TMAC_ALWAYS_INLINE int32_t sum_lanes(__m256i eight_i32) {
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight_i32), _mm256_extracti128_si256(eight_i32, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}

/// 32 rounded activations as bytes: the packs leave dwords of each lane interleaved, which the permutation undoes.
TMAC_ALWAYS_INLINE __m256i bytes_of_columns(const __m256i (&rounded_i32x8)[kStep / kLanes]) {
    const __m256i low_i16x16 = _mm256_packs_epi32(rounded_i32x8[0], rounded_i32x8[1]);
    const __m256i high_i16x16 = _mm256_packs_epi32(rounded_i32x8[2], rounded_i32x8[3]);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low_i16x16, high_i16x16), order);
}

/// Layout::quads wants column 4i + j of sixteen at byte 4j + i (mad_codes.h).
TMAC_ALWAYS_INLINE __m256i in_order(Layout layout, __m256i bytes) {
    const __m128i transposed = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return layout == Layout::quads ? _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(transposed)) : bytes;
}

/// The first `count` groups of four bytes, `step` apart.
TMAC_ALWAYS_INLINE void store_fours(int8_t* q, int64_t step, __m256i bytes, int32_t count) {
    if (step == 4 && count == kStep / 4) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), bytes);
        return;
    }
    alignas(32) int8_t fours[kStep];
    _mm256_store_si256(reinterpret_cast<__m256i*>(fours), bytes);
    for (int32_t i = 0; i < count; ++i) {
        std::memcpy(q + i * step, fours + 4 * i, 4);
    }
}

/// A `Full` act group has 128 columns: loops that the compiler unrolls.
template <bool Full>
TMAC_ALWAYS_INLINE void quantize_group(const PrepareArgs& args, int32_t index, const Magnitudes& magnitudes) {
    ActGroup group = args.act_groups[index];
    if (Full) {
        group.k_count = group.padded_count = kActGroup;
    }
    if (!magnitudes.finite) {
        refuse_int8(args, index);
        return;
    }
    const ActScale scale = act_scale_of(magnitudes.largest);
    const __m256 inverse = _mm256_set1_ps(scale.inverse);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin / 4 * args.act_step;
    __m256i sum_i32x8 = _mm256_setzero_si256();
    for (int32_t at = 0; at < group.padded_count; at += kStep) {
        __m256i rounded_i32x8[kStep / kLanes];
        const bool whole = Full || at + kStep <= group.k_count;
        TMAC_UNROLL
        for (int i = 0; i < kStep / kLanes; ++i) {
            const int32_t column = at + i * kLanes;
            const __m256 columns =
                whole ? _mm256_loadu_ps(args.x + group.k_begin + column) : load_columns(args.x, group, column);
            rounded_i32x8[i] = _mm256_cvtps_epi32(_mm256_mul_ps(columns, inverse));
            sum_i32x8 = _mm256_add_epi32(sum_i32x8, rounded_i32x8[i]);
        }
        const __m256i bytes = in_order(args.layout, bytes_of_columns(rounded_i32x8));
        const int32_t left = group.padded_count - at;  // a multiple of 4, so the last step may be short
        store_fours(q, args.act_step, bytes, left >= kStep ? kStep / 4 : left / 4);
        q += kStep / 4 * args.act_step;
    }
    finish_int8(args, index, sum_lanes(sum_i32x8), scale.scale);
}

void quantize_full_group(const PrepareArgs& args, int32_t index) {
    ActGroup group = args.act_groups[index];
    group.k_count = kActGroup;
    quantize_group<true>(args, index, magnitudes_of(args, group));
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
        if (!per_token && group.k_count == kActGroup && group.padded_count == kActGroup) {
            quantize_full_group(args, index);
        } else {
            quantize_group<false>(args, index, per_token ? token : magnitudes_of(args, group));
        }
    }
}

}  // namespace tmac::avx2
