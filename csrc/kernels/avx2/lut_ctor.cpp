#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// Tables of the class `lut` (docs/numerics.md), eight at a time, one per lane.
//
// Transposing four registers of eight columns within their halves puts column j of eight tables into register j. With
// p = a0 + a1, m = a0 - a1, r = a2 + a3 and s = a2 - a3 the lower half of a table is
//
//   entry  0         1      2         3      4      5      6      7
//          -(p + r)  m - r  -(m + r)  p - r  s - p  m + s  s - m  p + s
//
// and entry 15 - e is -entry e: rounding is symmetric, so that is exact.

namespace tmac::avx2 {
namespace {

constexpr int kBlockColumns = 32;  ///< eight tables
constexpr int kMostBlocks = 4;     ///< of an act group: at most 128 columns

/// Four registers; after transpose(), register j holds column j of eight tables: half h, element i is table 2 i + h.
struct Four {
    __m256 v[4];
};

TMAC_ALWAYS_INLINE Four transpose(const Four& rows) {
    const __m256 low01 = _mm256_unpacklo_ps(rows.v[0], rows.v[1]);
    const __m256 high01 = _mm256_unpackhi_ps(rows.v[0], rows.v[1]);
    const __m256 low23 = _mm256_unpacklo_ps(rows.v[2], rows.v[3]);
    const __m256 high23 = _mm256_unpackhi_ps(rows.v[2], rows.v[3]);
    return {{_mm256_shuffle_ps(low01, low23, 0x44), _mm256_shuffle_ps(low01, low23, 0xee),
             _mm256_shuffle_ps(high01, high23, 0x44), _mm256_shuffle_ps(high01, high23, 0xee)}};
}

/// (|a0| + |a1|) + (|a2| + |a3|) of eight tables.
TMAC_ALWAYS_INLINE __m256 magnitudes(const Four& a) {
    return _mm256_add_ps(_mm256_add_ps(abs_ps(a.v[0]), abs_ps(a.v[1])), _mm256_add_ps(abs_ps(a.v[2]), abs_ps(a.v[3])));
}

/// Four entries of eight tables as bytes: a dword per table.
TMAC_ALWAYS_INLINE __m256i pack_four(__m256 e0, __m256 e1, __m256 e2, __m256 e3) {
    const __m256i low = _mm256_packs_epi32(_mm256_cvtps_epi32(e0), _mm256_cvtps_epi32(e1));
    const __m256i high = _mm256_packs_epi32(_mm256_cvtps_epi32(e2), _mm256_cvtps_epi32(e3));
    return _mm256_packs_epi16(low, high);  // byte 4 e + i of a half: entry e of the half's table i
}

TMAC_ALWAYS_INLINE __m256i shuffle_halves(__m256i bytes, __m128i order) {
    return _mm256_shuffle_epi8(bytes, _mm256_broadcastsi128_si256(order));
}

/// Tables of 32 columns. `flip` is a mask of 0x80 bytes where entries are to be unsigned, 128 larger.
TMAC_ALWAYS_INLINE void build_tables(const Four& a, __m256 inverse, __m256i flip, int8_t* tables) {
    const __m256 minus = _mm256_xor_ps(inverse, _mm256_set1_ps(-0.0F));
    const __m256 p = _mm256_add_ps(a.v[0], a.v[1]);
    const __m256 m = _mm256_sub_ps(a.v[0], a.v[1]);
    const __m256 r = _mm256_add_ps(a.v[2], a.v[3]);
    const __m256 s = _mm256_sub_ps(a.v[2], a.v[3]);
    const __m256i first =
        pack_four(_mm256_mul_ps(_mm256_add_ps(p, r), minus), _mm256_mul_ps(_mm256_sub_ps(m, r), inverse),
                  _mm256_mul_ps(_mm256_add_ps(m, r), minus), _mm256_mul_ps(_mm256_sub_ps(p, r), inverse));
    const __m256i second =
        pack_four(_mm256_mul_ps(_mm256_sub_ps(s, p), inverse), _mm256_mul_ps(_mm256_add_ps(m, s), inverse),
                  _mm256_mul_ps(_mm256_sub_ps(s, m), inverse), _mm256_mul_ps(_mm256_add_ps(p, s), inverse));
    const __m128i in_order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m128i reversed = _mm_setr_epi8(12, 8, 4, 0, 13, 9, 5, 1, 14, 10, 6, 2, 15, 11, 7, 3);
    const __m256i zero = _mm256_setzero_si256();
    const __m256i entries0 = shuffle_halves(first, in_order);
    const __m256i entries4 = shuffle_halves(second, in_order);
    const __m256i entries8 = shuffle_halves(_mm256_sub_epi8(zero, second), reversed);
    const __m256i entries12 = shuffle_halves(_mm256_sub_epi8(zero, first), reversed);
    const __m256i low_first = _mm256_unpacklo_epi32(entries0, entries4);
    const __m256i low_last = _mm256_unpackhi_epi32(entries0, entries4);
    const __m256i high_first = _mm256_unpacklo_epi32(entries8, entries12);
    const __m256i high_last = _mm256_unpackhi_epi32(entries8, entries12);
    const __m256i by_two[4] = {_mm256_unpacklo_epi64(low_first, high_first),
                               _mm256_unpackhi_epi64(low_first, high_first), _mm256_unpacklo_epi64(low_last, high_last),
                               _mm256_unpackhi_epi64(low_last, high_last)};
    TMAC_UNROLL
    for (int i = 0; i < 4; ++i) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(tables) + i, _mm256_xor_si256(by_two[i], flip));
    }
}

/// An act group; a `Full` one has 128 columns and needs no masks.
template <bool Full>
TMAC_ALWAYS_INLINE void build_group(const PrepareArgs& args, int32_t index, __m256i flip) {
    const ActGroup& group = args.act_groups[index];
    const int32_t blocks = Full ? kMostBlocks : group.padded_count / kBlockColumns;  // Layout::rows pads to whole ones
    Four columns[kMostBlocks];
    __m256 lanes[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    __m256 largest_lanes = _mm256_setzero_ps();
    for (int32_t block = 0; block < blocks; ++block) {
        Four rows;
        TMAC_UNROLL
        for (int i = 0; i < 4; ++i) {
            const int32_t at = block * kBlockColumns + i * kLanes;
            rows.v[i] = Full ? _mm256_loadu_ps(args.x + group.k_begin + at) : load_columns(args.x, group, at);
            lanes[i % 2] = _mm256_add_ps(lanes[i % 2], rows.v[i]);
        }
        columns[block] = transpose(rows);
        largest_lanes = _mm256_max_ps(magnitudes(columns[block]), largest_lanes);
    }
    const float act_sum = fold_lanes(_mm256_add_ps(lanes[0], lanes[1]));
    const float largest = max_lane(largest_lanes);
    const ActScale scale = act_scale_of(largest);
    if (!finish_tables(args, index, largest, act_sum, scale)) {
        return;
    }
    int8_t* tables = tables_of(args, group);
    for (int32_t block = 0; block < blocks; ++block) {
        build_tables(columns[block], _mm256_set1_ps(scale.inverse), flip, tables);
        tables += kBlockColumns / kLutGroup * kLutEntries;
    }
}

void build(const PrepareArgs& args, __m256i flip) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        args.act_groups[index].k_count == kMostBlocks* kBlockColumns ? build_group<true>(args, index, flip)
                                                                     : build_group<false>(args, index, flip);
    }
}

}  // namespace

void lut_ctor(const PrepareArgs& args) { build(args, _mm256_setzero_si256()); }
void unsigned_lut_ctor(const PrepareArgs& args) { build(args, _mm256_set1_epi8(-128)); }

}  // namespace tmac::avx2
