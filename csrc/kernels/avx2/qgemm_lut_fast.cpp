#include "core/cpu_features.h"
#include "kernels/averages.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// The class `lut_fast`: look-ups of Layout::rows, aggregated by rounding averages (kernels/averages.h).
//
//   intrinsic                     what it does here                                        Zen 3    Skylake
//   _mm256_shuffle_epi8           vpshufb: 32 look-ups in one table                        0.5 cyc  1 cyc
//   _mm256_avg_epu8               averages two look-ups of 32 rows, rounding up            0.5      0.5
//   _mm256_unpacklo/hi_epi8       puts the averages of a row's two lanes side by side      0.5      1
//   _mm256_maddubs_epi16          adds the two, times +-2^plane, to int16 in one step      0.5      0.5
//
// A byte of the layout is a row, its low nibble table 2s of a chunk, its high nibble table 2s + 1. Steps s and s + 2 of
// a chunk hold two tables each of lanes 2s and 2s + 1, so lanes 0 and 1 are done first, then lanes 2 and 3, whose
// averages are subtracted. Widening is left for the end of an act group: once per 8 look-ups of a lane.
//
// No int16 sum overflows: a plane adds at most 2 * 255 * 2^plane and takes away as much, 15 * 510 = 7650 in all.

namespace tmac::avx2 {
namespace {

constexpr int32_t kHalfRows = 32;   ///< of which 8 columns stand in one register
constexpr int32_t kBlockRows = 64;  ///< two halves; row ranges are multiples of it
constexpr int32_t kStepBytes = 64;
constexpr int32_t kChunkBytes = 4 * kStepBytes;
constexpr int32_t kChunkTableBytes = kAverageColumns / kLutGroup * kLutEntries;
constexpr int32_t kPrefetch = 4096;  ///< bytes ahead

/// int16 sums of 32 rows.
struct Sums {
    __m256i first_i16x16;   ///< even words: rows 0..7, odd words: rows 8..15
    __m256i second_i16x16;  ///< rows 16..23, rows 24..31
};

/// Bytes of two neighbouring lanes, of 32 rows each.
struct Lanes {
    __m256i even_u8x32;
    __m256i odd_u8x32;
};

TMAC_ALWAYS_INLINE Lanes average(const Lanes& a, const Lanes& b) {
    return {_mm256_avg_epu8(a.even_u8x32, b.even_u8x32), _mm256_avg_epu8(a.odd_u8x32, b.odd_u8x32)};
}

TMAC_ALWAYS_INLINE __m256i look_up(const uint8_t* table, __m256i index_u8x32) {
    const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(entries), index_u8x32);
}

/// The two nibbles of 32 rows as indices.
TMAC_ALWAYS_INLINE Lanes indices_of(const uint8_t* bytes) {
    const __m256i mask_u8x32 = _mm256_set1_epi8(0x0f);
    const __m256i v_u8x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    return {_mm256_and_si256(v_u8x32, mask_u8x32), _mm256_and_si256(_mm256_srli_epi16(v_u8x32, 4), mask_u8x32)};
}

TMAC_ALWAYS_INLINE Lanes look_up_both(const uint8_t* tables, const Lanes& indices) {
    return {look_up(tables, indices.even_u8x32), look_up(tables + kLutEntries, indices.odd_u8x32)};
}

/// Lanes 2 * Pair and 2 * Pair + 1 of one plane of an act group: trees over Chunks chunks, added to the sums.
template <int Pair, int Chunks, bool Prefetch, int M>
TMAC_ALWAYS_INLINE void add_lanes(const uint8_t* bytes, const uint8_t* tables, int64_t table_stride, int32_t weight,
                                  Sums (&sums)[M]) {
    const __m256i zero_u8x32 = _mm256_set1_epi8(static_cast<char>((kZeroEntries >> (16 * Pair)) & 0xff));
    const __m256i weight_i8x32 = _mm256_set1_epi8(static_cast<char>(Pair == 0 ? weight : -weight));
    Lanes tree[M];     // chunk 0, then chunks 0 and 1, then all
    Lanes pending[M];  // chunk 2
    TMAC_UNROLL
    for (int chunk = 0; chunk < Chunks; ++chunk) {
        const uint8_t* at = bytes + chunk * kChunkBytes + Pair * kStepBytes;
        if constexpr (Prefetch) {
            TMAC_PREFETCH(at + kPrefetch);
            TMAC_PREFETCH(at + 2 * kStepBytes + kPrefetch);
        }
        const Lanes low_indices = indices_of(at);
        const Lanes high_indices = indices_of(at + 2 * kStepBytes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const uint8_t* table = tables + m * table_stride + chunk * kChunkTableBytes + Pair * 2 * kLutEntries;
            const Lanes both = average(look_up_both(table, low_indices),
                                       look_up_both(table + kAverageLanes * kLutEntries, high_indices));
            if (chunk == 0) {
                tree[m] = both;
            } else if (chunk == 1) {
                tree[m] = average(tree[m], both);
            } else if (chunk == 2) {
                pending[m] = both;
            } else {
                tree[m] = average(tree[m], average(pending[m], both));
            }
        }
    }
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        if constexpr (Chunks == 3) {
            tree[m] = average(tree[m], average(pending[m], {zero_u8x32, zero_u8x32}));
        }
        const __m256i first_u8x32 = _mm256_unpacklo_epi8(tree[m].even_u8x32, tree[m].odd_u8x32);
        const __m256i second_u8x32 = _mm256_unpackhi_epi8(tree[m].even_u8x32, tree[m].odd_u8x32);
        sums[m].first_i16x16 = _mm256_add_epi16(sums[m].first_i16x16, _mm256_maddubs_epi16(first_u8x32, weight_i8x32));
        sums[m].second_i16x16 =
            _mm256_add_epi16(sums[m].second_i16x16, _mm256_maddubs_epi16(second_u8x32, weight_i8x32));
    }
}

/// All planes of an act group.
template <int Bits, int Chunks, int M>
TMAC_ALWAYS_INLINE void add_group(const QgemmArgs& args, const uint8_t* codes, const uint8_t* tables, Sums (&sums)[M]) {
    const Regions regions(args);
    constexpr bool kOneStream = Bits == 1;  // which the CPU's own prefetchers do not run far enough ahead of
    TMAC_UNROLL
    for (int plane = 0; plane < Bits; ++plane) {
        const uint8_t* bytes = regions.in(codes, plane);
        const int32_t weight = 1 << (Bits - 1 - plane);
        add_lanes<0, Chunks, kOneStream>(bytes, tables, args.act_stride, weight, sums);
        add_lanes<1, Chunks, kOneStream>(bytes, tables, args.act_stride, weight, sums);
    }
}

TMAC_ALWAYS_INLINE __m256i widen_even(__m256i v) { return _mm256_madd_epi16(v, _mm256_set1_epi32(1)); }
TMAC_ALWAYS_INLINE __m256i widen_odd(__m256i v) { return _mm256_srai_epi32(v, 16); }

/// Some rows of a band, times one act group. Results stay in `y`, [token][kBandRows] from the first row on, until the
/// band's last act group.
struct Piece {
    const uint8_t* codes;   ///< of the first 64 rows
    const uint8_t* tables;  ///< of the first token
    float* y;
    int64_t rows;       ///< a multiple of 64
    GroupPlace values;  ///< of the first row
    int32_t chunks;     ///< of the act group
    int32_t group;
};

/// 32 rows, from `row` of the piece on, times M tokens.
template <int Bits, int M>
void multiply_half(const QgemmArgs& args, const Epilogue<Floats>& epilogue, const Piece& piece, int64_t row,
                   int32_t token) {
    const uint8_t* codes = piece.codes + row / kBlockRows * piece.chunks * kChunkBytes + row % kBlockRows;
    const uint8_t* tables = piece.tables + token * args.act_stride;
    const __m256i zeros_i16x16 = _mm256_set1_epi16(-kAverageOffset * ((1 << Bits) - 1));
    Sums sums[M];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        sums[m] = {zeros_i16x16, zeros_i16x16};
    }
    switch (piece.chunks) {
        case 1:
            add_group<Bits, 1>(args, codes, tables, sums);
            break;
        case 2:
            add_group<Bits, 2>(args, codes, tables, sums);
            break;
        case 3:
            add_group<Bits, 3>(args, codes, tables, sums);
            break;
        default:
            add_group<Bits, 4>(args, codes, tables, sums);
    }
    const __m128i levels = _mm_cvtsi32_si128(tree_levels(piece.chunks));
    const int64_t groups = args.num_act_groups;
    const float* act_scale = args.act_scale + token * groups + piece.group;
    const float* act_sum = args.act_sum + token * groups + piece.group;
    float* results = piece.y + token * kBandRows + row;
    TMAC_UNROLL
    for (int part = 0; part < 4; ++part) {
        const GroupTerms<Floats> terms = epilogue.load(piece.values + (row + part * kLanes));
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m256i sum = part < 2 ? sums[m].first_i16x16 : sums[m].second_i16x16;
            const __m256i isum_i32x8 = _mm256_sll_epi32(part % 2 == 0 ? widen_even(sum) : widen_odd(sum), levels);
            float* y = results + m * kBandRows + part * kLanes;
            _mm256_store_ps(
                y, epilogue.add(terms, isum_i32x8, act_scale[m * groups], act_sum[m * groups], _mm256_load_ps(y)));
        }
    }
}

/// Rows [row, row_end) of one band.
template <int Bits>
void multiply_band(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, int64_t row_end) {
    alignas(64) float y[kMaxLutTokens][kBandRows];
    const int64_t rows = (row_end - row + kBlockRows - 1) / kBlockRows * kBlockRows;
    for (int32_t token = 0; token < args.m; ++token) {
        std::memset(y[token], 0, static_cast<size_t>(rows) * sizeof(float));
    }
    const BandPlace place(args.n, row);
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const ActGroup& group = args.act_groups[g];
        const int64_t first_chunk = group.padded_begin / kAverageColumns;
        const Piece piece{args.codes + place.codes(args.padded_k, group),
                          static_cast<const uint8_t*>(args.act) + first_chunk * kChunkTableBytes,
                          y[0],
                          rows,
                          place_in_band(args, place, group),
                          group.padded_count / kAverageColumns,
                          g};
        for (int64_t at = 0; at < rows; at += kHalfRows) {
            for_each_token_block<2, 1>(
                args.m, [&]<int M>(int32_t token) { multiply_half<Bits, M>(args, epilogue, piece, at, token); });
        }
    }
    for (int32_t token = 0; token < args.m; ++token) {
        for (int64_t at = 0; at < rows; at += kLanes) {
            store_rows(args.y + token * args.ldy, row + at, row_end, _mm256_load_ps(y[token] + at));
        }
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for_each_band(args, [&](int64_t row, int64_t row_end) { multiply_band<Bits>(args, epilogue, row, row_end); });
}

void prepare(const PrepareArgs& args) {
    lut_ctor(args);
    offset_tables(args);
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c;

#define TMAC_ROW(suffix, bits, codebook)                                                          \
    Kernel {                                                                                      \
        "qgemm_lut_fast_" suffix "_avx2", bits, codebook, kGroup, Method::lut_fast, Layout::rows, \
            bit_of(Layout::rows), kFeatures, qgemm<bits>, prepare                                 \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut_fast = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx2
