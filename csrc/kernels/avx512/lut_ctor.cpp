#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// Tables of the class `lut` (docs/numerics.md), sixteen at a time, one per lane.
//
// Transposing four registers of four columns each puts column j of sixteen tables into register j. With
// p = a0 + a1, m = a0 - a1, r = a2 + a3 and s = a2 - a3 the lower half of a table is
//
//   entry  0         1      2         3      4      5      6      7
//          -(p + r)  m - r  -(m + r)  p - r  s - p  m + s  s - m  p + s
//
// and entry 15 - e is -entry e: rounding is symmetric, so that is exact.

namespace tmac::avx512 {
namespace {

constexpr int kBlocks = 2;         ///< of 64 columns: an act group of 128 stays in registers
constexpr int kBlockColumns = 64;  ///< sixteen tables

/// Four registers; after transpose(), register j holds column j of sixteen tables: lane l, element i is table 4 i + l.
struct Four {
    __m512 v[4];
};

TMAC_ALWAYS_INLINE Four transpose(const Four& rows) {
    const __m512 low01 = _mm512_unpacklo_ps(rows.v[0], rows.v[1]);
    const __m512 high01 = _mm512_unpackhi_ps(rows.v[0], rows.v[1]);
    const __m512 low23 = _mm512_unpacklo_ps(rows.v[2], rows.v[3]);
    const __m512 high23 = _mm512_unpackhi_ps(rows.v[2], rows.v[3]);
    return {{_mm512_shuffle_ps(low01, low23, 0x44), _mm512_shuffle_ps(low01, low23, 0xee),
             _mm512_shuffle_ps(high01, high23, 0x44), _mm512_shuffle_ps(high01, high23, 0xee)}};
}

/// (|a0| + |a1|) + (|a2| + |a3|) of sixteen tables.
TMAC_ALWAYS_INLINE __m512 magnitudes(const Four& a) {
    return _mm512_add_ps(_mm512_add_ps(_mm512_abs_ps(a.v[0]), _mm512_abs_ps(a.v[1])),
                         _mm512_add_ps(_mm512_abs_ps(a.v[2]), _mm512_abs_ps(a.v[3])));
}

/// Four entries of sixteen tables as bytes: a dword per table.
TMAC_ALWAYS_INLINE __m512i pack_four(__m512 e0, __m512 e1, __m512 e2, __m512 e3) {
    const __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(e0), _mm512_cvtps_epi32(e1));
    const __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(e2), _mm512_cvtps_epi32(e3));
    return _mm512_packs_epi16(low, high);  // byte 4 e + i of a lane: entry e of the lane's table i
}

TMAC_ALWAYS_INLINE __m512i shuffle_lanes(__m512i bytes, __m128i order) {
    return _mm512_shuffle_epi8(bytes, _mm512_broadcast_i32x4(order));
}

/// Tables of 64 columns; those of `columns` of them are stored.
TMAC_ALWAYS_INLINE void build_tables(const Four& a, __m512 inverse, int8_t* tables, int32_t columns) {
    const __m512 minus = _mm512_xor_ps(inverse, _mm512_set1_ps(-0.0F));
    const __m512 p = _mm512_add_ps(a.v[0], a.v[1]);
    const __m512 m = _mm512_sub_ps(a.v[0], a.v[1]);
    const __m512 r = _mm512_add_ps(a.v[2], a.v[3]);
    const __m512 s = _mm512_sub_ps(a.v[2], a.v[3]);
    const __m512i first =
        pack_four(_mm512_mul_ps(_mm512_add_ps(p, r), minus), _mm512_mul_ps(_mm512_sub_ps(m, r), inverse),
                  _mm512_mul_ps(_mm512_add_ps(m, r), minus), _mm512_mul_ps(_mm512_sub_ps(p, r), inverse));
    const __m512i second =
        pack_four(_mm512_mul_ps(_mm512_sub_ps(s, p), inverse), _mm512_mul_ps(_mm512_add_ps(m, s), inverse),
                  _mm512_mul_ps(_mm512_sub_ps(s, m), inverse), _mm512_mul_ps(_mm512_add_ps(p, s), inverse));
    const __m128i in_order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i reversed = _mm_setr_epi8(12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, 15, 11, 7, 3);
    const __m512i zero = _mm512_setzero_si512();
    const __m512i entries0 = shuffle_lanes(first, in_order);
    const __m512i entries4 = shuffle_lanes(second, in_order);
    const __m512i entries8 = shuffle_lanes(_mm512_sub_epi8(zero, second), reversed);
    const __m512i entries12 = shuffle_lanes(_mm512_sub_epi8(zero, first), reversed);
    const __m512i low_first = _mm512_unpacklo_epi32(entries0, entries4);
    const __m512i low_last = _mm512_unpackhi_epi32(entries0, entries4);
    const __m512i high_first = _mm512_unpacklo_epi32(entries8, entries12);
    const __m512i high_last = _mm512_unpackhi_epi32(entries8, entries12);
    const __m512i by_four[4] = {_mm512_unpacklo_epi64(low_first, high_first),
                                _mm512_unpackhi_epi64(low_first, high_first),
                                _mm512_unpacklo_epi64(low_last, high_last), _mm512_unpackhi_epi64(low_last, high_last)};
    TMAC_UNROLL
    for (int i = 0; i < 4; ++i) {
        if (kLanes * i < columns) {
            _mm512_storeu_si512(tables + i * kLutGroup * kLutEntries, by_four[i]);
        }
    }
}

/// Groups of 128 columns, of which `Full` ones need no masks.
template <bool Full>
TMAC_ALWAYS_INLINE void build_group(const PrepareArgs& args, int32_t index) {
    const ActGroup& group = args.act_groups[index];
    Four blocks[kBlocks];
    __m512 lanes = _mm512_setzero_ps();
    TMAC_UNROLL
    for (int i = 0; i < 4 * kBlocks; ++i) {
        const __m512 columns =
            Full ? _mm512_loadu_ps(args.x + group.k_begin + kLanes * i) : load_columns(args.x, group, kLanes * i);
        lanes = _mm512_add_ps(lanes, columns);
        blocks[i / 4].v[i % 4] = columns;
    }
    TMAC_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
        blocks[i] = transpose(blocks[i]);
    }
    const float act_sum = fold_lanes(lanes);
    const float largest = _mm512_reduce_max_ps(_mm512_max_ps(magnitudes(blocks[0]), magnitudes(blocks[1])));
    const ActScale scale = act_scale_of(largest);
    if (!finish_tables(args, index, largest, act_sum, scale)) {
        return;
    }
    int8_t* tables = tables_of(args, group);
    TMAC_UNROLL
    for (int i = 0; i < kBlocks; ++i) {
        const int32_t columns = Full ? kBlockColumns : group.padded_count - kBlockColumns * i;
        build_tables(blocks[i], _mm512_set1_ps(scale.inverse), tables, columns);
        tables += kBlockColumns / kLutGroup * kLutEntries;
    }
}

}  // namespace

void lut_ctor(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        args.act_groups[index].k_count == kBlocks* kBlockColumns ? build_group<true>(args, index)
                                                                 : build_group<false>(args, index);
    }
}

}  // namespace tmac::avx512
