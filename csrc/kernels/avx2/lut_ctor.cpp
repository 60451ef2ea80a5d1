#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// Tables of the class `lut` (docs/numerics.md). The eight lanes are entries 8..15 of one table, those that add column
// 3; entry 15 - e is minus entry e (mirror consolidation), so the other eight are the same bytes, negated and turned
// round.

namespace tmac::avx2 {
namespace {

/// Eight columns' |a|, each lane the sum of its group of four: (|a0| + |a1|) + (|a2| + |a3|).
TMAC_ALWAYS_INLINE __m256 four_sums(__m256 columns) {
    const __m256 magnitude = abs_ps(columns);
    const __m256 pairs = _mm256_add_ps(magnitude, _mm256_permute_ps(magnitude, 0xb1));  // lanes 1 0 3 2
    return _mm256_add_ps(pairs, _mm256_permute_ps(pairs, 0x4e));                        // lanes 2 3 0 1
}

/// Sign of column i in entry 8 + lane: minus where bit i of the lane is clear.
struct Signs {
    __m256 of_column[kLutGroup - 1];
};

TMAC_ALWAYS_INLINE Signs make_signs() {
    const __m256 minus = _mm256_set1_ps(-0.0F);
    const __m256i lane_i32x8 = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    Signs signs;
    for (int i = 0; i < kLutGroup - 1; ++i) {
        const __m256i bit = _mm256_and_si256(lane_i32x8, _mm256_set1_epi32(1 << i));
        const __m256i clear = _mm256_cmpeq_epi32(bit, _mm256_setzero_si256());
        signs.of_column[i] = _mm256_and_ps(minus, _mm256_castsi256_ps(clear));
    }
    return signs;
}

TMAC_ALWAYS_INLINE void build_table(const float* four, const Signs& signs, __m256 inverse, int8_t* table) {
    const __m256 a0 = _mm256_xor_ps(_mm256_set1_ps(four[0]), signs.of_column[0]);
    const __m256 a1 = _mm256_xor_ps(_mm256_set1_ps(four[1]), signs.of_column[1]);
    const __m256 a2 = _mm256_xor_ps(_mm256_set1_ps(four[2]), signs.of_column[2]);
    const __m256 sum = _mm256_add_ps(_mm256_add_ps(a0, a1), _mm256_add_ps(a2, _mm256_set1_ps(four[3])));
    const __m256i upper_i32x8 = _mm256_cvtps_epi32(_mm256_mul_ps(sum, inverse));
    const __m128i upper_i16x8 =
        _mm_packs_epi32(_mm256_castsi256_si128(upper_i32x8), _mm256_extracti128_si256(upper_i32x8, 1));
    const __m128i upper_i8x8 = _mm_packs_epi16(upper_i16x8, upper_i16x8);
    const __m128i turn_u8x16 = _mm_setr_epi8(7, 6, 5, 4, 3, 2, 1, 0, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m128i lower_i8x8 = _mm_sub_epi8(_mm_setzero_si128(), _mm_shuffle_epi8(upper_i8x8, turn_u8x16));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(table), _mm_unpacklo_epi64(lower_i8x8, upper_i8x8));
}

void build_group(const PrepareArgs& args, const ActGroup& group, int32_t index, const Signs& signs) {
    __m256 low_lanes = _mm256_setzero_ps();
    __m256 high_lanes = _mm256_setzero_ps();
    __m256 largest_lanes = _mm256_setzero_ps();
    for (int32_t at = 0; at < group.padded_count; at += 2 * kLanes) {
        const __m256 low = load_columns(args.x, group, at);
        const __m256 high = load_columns(args.x, group, at + kLanes);
        low_lanes = _mm256_add_ps(low_lanes, low);
        high_lanes = _mm256_add_ps(high_lanes, high);
        largest_lanes = _mm256_max_ps(four_sums(low), largest_lanes);
        largest_lanes = _mm256_max_ps(four_sums(high), largest_lanes);
    }
    const float act_sum = fold_lanes(_mm256_add_ps(low_lanes, high_lanes));
    const float largest = max_lane(largest_lanes);
    const ActScale scale = act_scale_of(largest);
    if (!finish_tables(args, index, largest, act_sum, scale)) {
        return;
    }
    int8_t* tables = tables_of(args, group);
    const __m256 inverse_f32x8 = _mm256_set1_ps(scale.inverse);
    for (int32_t at = 0; at < group.padded_count; at += kLanes) {
        float columns[kLanes];
        _mm256_storeu_ps(columns, load_columns(args.x, group, at));
        for (int32_t i = 0; i < kLanes; i += kLutGroup) {
            build_table(columns + i, signs, inverse_f32x8, tables + (at + i) * (kLutEntries / kLutGroup));
        }
    }
}

}  // namespace

void lut_ctor(const PrepareArgs& args) {
    const Signs signs = make_signs();
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        build_group(args, args.act_groups[index], index, signs);
    }
}

}  // namespace tmac::avx2
