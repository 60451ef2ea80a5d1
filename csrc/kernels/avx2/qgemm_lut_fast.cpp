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

constexpr int32_t kTileRows = 32;
constexpr int32_t kStepBytes = 32;
constexpr int32_t kChunkBytes = 128;
constexpr int32_t kChunkTableBytes = kAverageColumns / kLutGroup * kLutEntries;
constexpr int32_t kPrefetch = 4096;

/// int16 sums of 32 rows.
struct Sums {
    __m256i first_i16x16;   ///< rows 0..15
    __m256i second_i16x16;  ///< rows 16..31
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
template <int Pair, int Chunks, int M>
TMAC_ALWAYS_INLINE void add_lanes(const uint8_t* bytes, const uint8_t* tables, int64_t table_stride, int32_t weight,
                                  Sums (&sums)[M]) {
    const __m256i zero_u8x32 = _mm256_set1_epi8(static_cast<char>((kZeroEntries >> (16 * Pair)) & 0xff));
    const __m256i weight_i8x32 = _mm256_set1_epi8(static_cast<char>(Pair == 0 ? weight : -weight));
    Lanes tree[M];     // chunk 0, then chunks 0 and 1, then all
    Lanes pending[M];  // chunk 2
    TMAC_UNROLL
    for (int chunk = 0; chunk < Chunks; ++chunk) {
        const uint8_t* at = bytes + chunk * kChunkBytes + Pair * kStepBytes;
        _mm_prefetch(reinterpret_cast<const char*>(bytes + chunk * kChunkBytes + Pair * 2 * kStepBytes + kPrefetch),
                     _MM_HINT_T0);
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
    TMAC_UNROLL
    for (int plane = 0; plane < Bits; ++plane) {
        const uint8_t* bytes = codes + plane * args.region_stride;
        const int32_t weight = 1 << (Bits - 1 - plane);
        add_lanes<0, Chunks>(bytes, tables, args.act_stride, weight, sums);
        add_lanes<1, Chunks>(bytes, tables, args.act_stride, weight, sums);
    }
}

TMAC_ALWAYS_INLINE __m256i widen_low(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)); }
TMAC_ALWAYS_INLINE __m256i widen_high(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)); }

/// One tile of 32 rows times M tokens.
template <int Bits, int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    const uint8_t* codes = args.codes + tile * (args.padded_k / kAverageColumns) * kChunkBytes;
    const auto* tables = static_cast<const uint8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const __m256i zeros_i16x16 = _mm256_set1_epi16(-kAverageOffset * ((1 << Bits) - 1));
    __m256 y[M][4];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        y[m][0] = y[m][1] = y[m][2] = y[m][3] = _mm256_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kAverageColumns;
        Sums sums[M];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            sums[m] = {zeros_i16x16, zeros_i16x16};
        }
        switch (chunks) {
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
        const __m128i levels = _mm_cvtsi32_si128(tree_levels(chunks));
        const int64_t first_row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        TMAC_UNROLL
        for (int part = 0; part < 4; ++part) {
            const GroupTerms<Floats> terms = epilogue.load(first_row + part * kLanes);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i half = part < 2 ? sums[m].first_i16x16 : sums[m].second_i16x16;
                const __m256i isum_i32x8 = _mm256_sll_epi32(part % 2 == 0 ? widen_low(half) : widen_high(half), levels);
                const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
                y[m][part] = epilogue.add(terms, isum_i32x8, args.act_scale[at], args.act_sum[at], y[m][part]);
            }
        }
        codes += chunks * kChunkBytes;
        tables += chunks * kChunkTableBytes;
    }
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        TMAC_UNROLL
        for (int part = 0; part < 4; ++part) {
            store_rows(args.y + (token + m) * args.ldy, tile * kTileRows + part * kLanes, args.row_end, y[m][part]);
        }
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<2, 1>(args.m,
                                   [&]<int M>(int32_t token) { multiply_tile<Bits, M>(args, epilogue, tile, token); });
    }
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
