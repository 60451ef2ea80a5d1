#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// Tables of the class `lut` (docs/numerics.md), one table per step: its sixteen entries are the sixteen lanes. Lane e
// adds a_i where bit i of e is set and subtracts it elsewhere: a sign mask per column, the same for every table.

namespace tmac::avx512 {
namespace {

constexpr int32_t kMinus = INT32_MIN;  ///< the sign bit of a float

/// Sixteen columns' |a|, each lane the sum of its group of four: (|a0| + |a1|) + (|a2| + |a3|).
TMAC_ALWAYS_INLINE __m512 four_sums(__m512 columns) {
    const __m512 magnitude = _mm512_abs_ps(columns);
    const __m512 pairs = _mm512_add_ps(magnitude, _mm512_permute_ps(magnitude, 0xb1));  // lanes 1 0 3 2
    return _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0x4e));                        // lanes 2 3 0 1
}

struct Signs {
    __m512 of_column[kLutGroup];
};

TMAC_ALWAYS_INLINE Signs make_signs() {
    Signs signs;
    for (int i = 0; i < kLutGroup; ++i) {
        // Bit e of this mask: entry e subtracts column i.
        constexpr __mmask16 kSubtracted[kLutGroup] = {0x5555, 0x3333, 0x0f0f, 0x00ff};
        signs.of_column[i] = _mm512_castsi512_ps(_mm512_maskz_set1_epi32(kSubtracted[i], kMinus));
    }
    return signs;
}

TMAC_ALWAYS_INLINE void build_table(const float* four, const Signs& signs, __m512 inverse, int8_t* table) {
    __m512 signed_a[kLutGroup];
    for (int i = 0; i < kLutGroup; ++i) {
        signed_a[i] = _mm512_xor_ps(_mm512_set1_ps(four[i]), signs.of_column[i]);
    }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(signed_a[0], signed_a[1]), _mm512_add_ps(signed_a[2], signed_a[3]));
    const __m512i entries_i32x16 = _mm512_cvtps_epi32(_mm512_mul_ps(sum, inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(table), _mm512_cvtepi32_epi8(entries_i32x16));
}

void build_group(const PrepareArgs& args, const ActGroup& group, int32_t index, const Signs& signs) {
    __m512 lanes = _mm512_setzero_ps();
    __m512 largest_lanes = _mm512_setzero_ps();
    for (int32_t at = 0; at < group.k_count; at += kLanes) {
        const __m512 columns = load_columns(args.x, group, at);
        lanes = _mm512_add_ps(lanes, columns);
        largest_lanes = _mm512_max_ps(four_sums(columns), largest_lanes);
    }
    const float act_sum = fold_lanes(lanes);
    const float largest = _mm512_reduce_max_ps(largest_lanes);
    const ActScale scale = act_scale_of(largest);
    if (!finish_tables(args, index, largest, act_sum, scale)) {
        return;
    }
    int8_t* tables = tables_of(args, group);
    const __m512 inverse_f32x16 = _mm512_set1_ps(scale.inverse);
    for (int32_t at = 0; at < group.padded_count; at += kLanes) {
        float columns[kLanes];
        _mm512_storeu_ps(columns, load_columns(args.x, group, at));
        for (int32_t i = 0; i < kLanes; i += kLutGroup) {
            build_table(columns + i, signs, inverse_f32x16, tables + (at + i) * (kLutEntries / kLutGroup));
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

}  // namespace tmac::avx512
