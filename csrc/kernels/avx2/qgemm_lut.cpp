#include "core/cpu_features.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// Bit planes through tables of 16 entries, T-MAC's look-up with fewer additions.
//
//   intrinsic                     what it does here                                        Zen 4    Skylake
//   _mm256_shuffle_epi8           vpshufb: 32 look-ups in one table                        0.5 cyc  1 cyc
//   _mm256_unpacklo/hi_epi8       puts what is to be added side by side                    0.5      1
//   _mm256_maddubs_epi16          adds the two, times their weights, to int16 in one step  0.5      0.5
//
// 32 bytes hold 8 columns of 32 rows of one plane (Layout::rows): a byte is a row, its low nibble the first four
// columns, its high nibble the next four. The layout's order of rows makes unpacklo rows 0..15, unpackhi 16..31.
//
// Two planes are unpacked before the look-ups: then a row's bytes of both planes, which look up in the same table, lie
// side by side, and maddubs weighs them 2 and 1. A plane without a partner looks both nibbles up and unpacks those.
//
// No int16 sum overflows: an act group of 128 columns has 32 look-ups of at most 127 a plane. Planes of weight 1, 2 and
// 4 together stay within 32 * 127 * 7 = 28448; of four planes each pair has a sum of its own, within 32 * 127 * 3.

namespace tmac::avx2 {
namespace {

constexpr int32_t kTileRows = 32;
constexpr int32_t kStepColumns = 8;
constexpr int32_t kStepBytes = 32;
constexpr int32_t kTableBytes = kStepColumns / kLutGroup * kLutEntries;  ///< both tables of a step
constexpr int32_t kUnroll = 4;  ///< steps: act groups are padded to a multiple of them
constexpr int kTokenBlock = 4;

/// Bytes ahead, all planes together. More of four even streams pushes the tables out of the L1 cache.
constexpr int32_t kPrefetch = 2048;

/// int16 sums of rows 0..15 and of rows 16..31 for M tokens.
template <int M>
struct Sums {
    __m256i of[M][2];
};

TMAC_ALWAYS_INLINE __m256i load_table(const int8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

TMAC_ALWAYS_INLINE __m256i load_codes(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}

struct Indices {
    __m256i low;
    __m256i high;
};

TMAC_ALWAYS_INLINE Indices indices_of(__m256i bytes) {
    const __m256i mask_u8x32 = _mm256_set1_epi8(0x0f);
    return {_mm256_and_si256(bytes, mask_u8x32), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), mask_u8x32)};
}

/// Asks for the line that step `i` of an unrolled loop will want later: every second step begins one.
template <int Bits>
TMAC_ALWAYS_INLINE void prefetch_codes(const uint8_t* codes, int i) {
    if (i % 2 == 0) {
        TMAC_PREFETCH(codes + i * kStepBytes + kPrefetch / (Bits == 3 ? 4 : Bits));
    }
}

/// Where an act group's codes and tables lie.
struct Span {
    const uint8_t* codes;  ///< of the first plane meant
    int64_t region_stride;
    const int8_t* tables;
    int64_t table_stride;  ///< from one token's to the next
    int32_t steps;         ///< of 8 columns, a multiple of kUnroll
};

/// Adds planes `codes` and the next one, weighed 2 and 1.
template <int Bits, int M>
TMAC_ALWAYS_INLINE void add_pair(const Span& span, Sums<M>& sums) {
    const __m256i weights_u8x32 = _mm256_set1_epi16(0x0102);
    const uint8_t* codes = span.codes;
    const int8_t* tables = span.tables;
    for (int32_t step = 0; step < span.steps; step += kUnroll) {
        TMAC_UNROLL
        for (int i = 0; i < kUnroll; ++i) {
            prefetch_codes<Bits>(codes, i);
            prefetch_codes<Bits>(codes + span.region_stride, i);
            const __m256i high_plane = load_codes(codes + i * kStepBytes);
            const __m256i low_plane = load_codes(codes + i * kStepBytes + span.region_stride);
            const Indices at[2] = {indices_of(_mm256_unpacklo_epi8(high_plane, low_plane)),
                                   indices_of(_mm256_unpackhi_epi8(high_plane, low_plane))};
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int8_t* table = tables + m * span.table_stride + i * kTableBytes;
                const __m256i low_table = load_table(table);
                const __m256i high_table = load_table(table + kLutEntries);
                TMAC_UNROLL
                for (int half = 0; half < 2; ++half) {
                    __m256i& sum = sums.of[m][half];
                    sum = _mm256_add_epi16(
                        sum, _mm256_maddubs_epi16(weights_u8x32, _mm256_shuffle_epi8(low_table, at[half].low)));
                    sum = _mm256_add_epi16(
                        sum, _mm256_maddubs_epi16(weights_u8x32, _mm256_shuffle_epi8(high_table, at[half].high)));
                }
            }
        }
        codes += kUnroll * kStepBytes;
        tables += kUnroll * kTableBytes;
    }
}

/// Adds plane `codes` with a weight.
template <int Bits, int Weight, int M>
TMAC_ALWAYS_INLINE void add_plane(const Span& span, Sums<M>& sums) {
    const __m256i weight_u8x32 = _mm256_set1_epi8(Weight);
    const uint8_t* codes = span.codes;
    const int8_t* tables = span.tables;
    for (int32_t step = 0; step < span.steps; step += kUnroll) {
        TMAC_UNROLL
        for (int i = 0; i < kUnroll; ++i) {
            prefetch_codes<Bits>(codes, i);
            const Indices at = indices_of(load_codes(codes + i * kStepBytes));
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int8_t* table = tables + m * span.table_stride + i * kTableBytes;
                const __m256i low_i8x32 = _mm256_shuffle_epi8(load_table(table), at.low);
                const __m256i high_i8x32 = _mm256_shuffle_epi8(load_table(table + kLutEntries), at.high);
                sums.of[m][0] = _mm256_add_epi16(
                    sums.of[m][0], _mm256_maddubs_epi16(weight_u8x32, _mm256_unpacklo_epi8(low_i8x32, high_i8x32)));
                sums.of[m][1] = _mm256_add_epi16(
                    sums.of[m][1], _mm256_maddubs_epi16(weight_u8x32, _mm256_unpackhi_epi8(low_i8x32, high_i8x32)));
            }
        }
        codes += kUnroll * kStepBytes;
        tables += kUnroll * kTableBytes;
    }
}

/// 8 rows as int32: quarter 0 and 1 of rows 0..15, 2 and 3 of rows 16..31.
template <int Quarter>
TMAC_ALWAYS_INLINE __m256i widen(const __m256i (&halves_i16x16)[2]) {
    const __m256i half = halves_i16x16[Quarter / 2];
    return _mm256_cvtepi16_epi32(Quarter % 2 == 0 ? _mm256_castsi256_si128(half) : _mm256_extracti128_si256(half, 1));
}

/// One act group of a tile: y[quarter][token] += ...
template <int Bits, bool HasCoefficient, int M>
TMAC_ALWAYS_INLINE void add_group(const QgemmArgs& args, const Epilogue<Floats>& epilogue, Span span, int64_t first_row,
                                  int64_t first_term, __m256 (&y)[4][M]) {
    Sums<M> sums;
    Sums<M> high;
    TMAC_UNROLL
    for (int i = 0; i < 2 * M; ++i) {
        sums.of[i / 2][i % 2] = _mm256_setzero_si256();
        high.of[i / 2][i % 2] = _mm256_setzero_si256();
    }
    if constexpr (Bits == 4) {
        add_pair<Bits, M>(span, high);
        span.codes += 2 * span.region_stride;
    } else if constexpr (Bits != 2) {
        add_plane<Bits, 1 << (Bits - 1), M>(span, sums);
        span.codes += span.region_stride;
    }
    if constexpr (Bits > 1) {
        add_pair<Bits, M>(span, sums);
    }
    const auto quarter = [&]<int Quarter>() {
        const GroupTerms<Floats> terms = epilogue.load(first_row + Quarter * kLanes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            __m256i isum_i32x8 = widen<Quarter>(sums.of[m]);
            if constexpr (Bits == 4) {
                isum_i32x8 = _mm256_add_epi32(isum_i32x8, _mm256_slli_epi32(widen<Quarter>(high.of[m]), 2));
            }
            const int64_t at = first_term + int64_t{m} * args.num_act_groups;
            y[Quarter][m] = Epilogue<Floats>::add_known<HasCoefficient>(terms, isum_i32x8, args.act_scale[at],
                                                                        args.act_sum[at], y[Quarter][m]);
        }
    };
    quarter.template operator()<0>();
    quarter.template operator()<1>();
    quarter.template operator()<2>();
    quarter.template operator()<3>();
}

/// One tile of 32 rows times M tokens.
template <int Bits, bool HasCoefficient, int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    Span span{args.codes + tile * (args.padded_k / kStepColumns) * kStepBytes, args.region_stride,
              static_cast<const int8_t*>(args.act) + token * args.act_stride, args.act_stride, 0};
    __m256 y[4][M];
    TMAC_UNROLL
    for (int i = 0; i < 4 * M; ++i) {
        y[i / M][i % M] = _mm256_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int64_t first_row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        span.steps = args.act_groups[g].padded_count / kStepColumns;
        add_group<Bits, HasCoefficient, M>(args, epilogue, span, first_row, int64_t{token} * args.num_act_groups + g,
                                           y);
        span.codes += span.steps * kStepBytes;
        span.tables += span.steps * kTableBytes;
    }
    TMAC_UNROLL
    for (int i = 0; i < 4 * M; ++i) {
        store_rows(args.y + (token + i % M) * args.ldy, tile * kTileRows + i / M * kLanes, args.row_end,
                   y[i / M][i % M]);
    }
}

template <int Bits, bool HasCoefficient>
void multiply_tiles(const QgemmArgs& args, const Epilogue<Floats>& epilogue) {
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<kTokenBlock, 2, 1>(
            args.m, [&]<int M>(int32_t token) { multiply_tile<Bits, HasCoefficient, M>(args, epilogue, tile, token); });
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    epilogue.has_coefficient ? multiply_tiles<Bits, true>(args, epilogue) : multiply_tiles<Bits, false>(args, epilogue);
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c;

#define TMAC_ROW(suffix, bits, codebook)                                                                      \
    Kernel {                                                                                                  \
        "qgemm_lut_" suffix "_avx2", bits, codebook, kGroup, Method::lut, Layout::rows, bit_of(Layout::rows), \
            kFeatures, qgemm<bits>, lut_ctor                                                                  \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx2
