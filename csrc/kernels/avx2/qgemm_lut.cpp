#include "core/cpu_features.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// Bit planes through tables of 16 entries, T-MAC's look-up with one addition less.
//
//   intrinsic                     what it does here                                        Zen 3    Skylake
//   _mm256_shuffle_epi8           vpshufb: 32 look-ups in one table                        0.5 cyc  1 cyc
//   _mm256_unpacklo/hi_epi8       puts a row's two look-ups side by side                   0.5      1
//   _mm256_maddubs_epi16          adds the two, times 2^plane, to int16 in one step        0.5      0.5
//
// 32 bytes hold 8 columns of 32 rows of one plane (Layout::rows): a byte is a row, its low nibble the first four
// columns, its high nibble the next four. Unpacking the two results interleaves them, so that maddubs with the constant
// 2^plane adds a row's two look-ups and widens. The layout's order of rows makes unpacklo rows 0..15, unpackhi 16..31.
//
// No int16 sum overflows: an act group has at most 16 such pairs of at most 254. Planes of weight 1, 2 and 4 together
// stay within 16 * 254 * 7 = 28448; the plane of weight 8 alone reaches 16 * 254 * 8 = 32512 and has a sum of its own.

namespace tmac::avx2 {
namespace {

constexpr int32_t kTileRows = 32;
constexpr int32_t kStepColumns = 8;
constexpr int32_t kStepBytes = 32;
constexpr int32_t kChunkColumns = 32;
constexpr int32_t kTableBytes = kStepColumns / kLutGroup * kLutEntries;  ///< both tables of a step
constexpr int32_t kPrefetch = 4096;

/// int16 sums of 32 rows.
struct Sums {
    __m256i first_i16x16;   ///< rows 0..15
    __m256i second_i16x16;  ///< rows 16..31
};

TMAC_ALWAYS_INLINE __m256i load_table(const int8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

/// Adds the look-ups of 8 columns of one plane.
TMAC_ALWAYS_INLINE void add_look_ups(const uint8_t* bytes, __m256i low_table, __m256i high_table, __m256i weight_u8x32,
                                     Sums& sums) {
    const __m256i mask_u8x32 = _mm256_set1_epi8(0x0f);
    const __m256i v_u8x32 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    const __m256i low_i8x32 = _mm256_shuffle_epi8(low_table, _mm256_and_si256(v_u8x32, mask_u8x32));
    const __m256i high_i8x32 =
        _mm256_shuffle_epi8(high_table, _mm256_and_si256(_mm256_srli_epi16(v_u8x32, 4), mask_u8x32));
    const __m256i first = _mm256_maddubs_epi16(weight_u8x32, _mm256_unpacklo_epi8(low_i8x32, high_i8x32));
    const __m256i second = _mm256_maddubs_epi16(weight_u8x32, _mm256_unpackhi_epi8(low_i8x32, high_i8x32));
    sums.first_i16x16 = _mm256_add_epi16(sums.first_i16x16, first);
    sums.second_i16x16 = _mm256_add_epi16(sums.second_i16x16, second);
}

TMAC_ALWAYS_INLINE __m256i widen_low(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_castsi256_si128(v)); }
TMAC_ALWAYS_INLINE __m256i widen_high(__m256i v) { return _mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)); }

/// One tile of 32 rows times M tokens.
template <int Bits, int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    constexpr int kSets = Bits == 4 ? 2 : 1;  // the plane of weight 8 sums alone
    const int64_t table_stride = args.act_stride;
    const uint8_t* codes = args.codes + tile * (args.padded_k / kStepColumns) * kStepBytes;
    const auto* tables = static_cast<const int8_t*>(args.act) + token * table_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    __m256 y[M][4];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        y[m][0] = y[m][1] = y[m][2] = y[m][3] = _mm256_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t steps = args.act_groups[g].padded_count / kStepColumns;
        Sums sums[M][kSets];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            TMAC_UNROLL
            for (int set = 0; set < kSets; ++set) {
                sums[m][set] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
            }
        }
        for (int32_t step = 0; step < steps; ++step) {
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i low_table = load_table(tables + m * table_stride);
                const __m256i high_table = load_table(tables + m * table_stride + kLutEntries);
                TMAC_UNROLL
                for (int plane = 0; plane < Bits; ++plane) {
                    const uint8_t* bytes = codes + plane * args.region_stride;
                    const __m256i weight_u8x32 = _mm256_set1_epi8(static_cast<char>(1 << (Bits - 1 - plane)));
                    _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetch), _MM_HINT_T0);
                    add_look_ups(bytes, low_table, high_table, weight_u8x32, sums[m][plane == 0 ? kSets - 1 : 0]);
                }
            }
            codes += kStepBytes;
            tables += kTableBytes;
        }
        const int64_t first_row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        TMAC_UNROLL
        for (int part = 0; part < 4; ++part) {
            const GroupTerms<Floats> terms = epilogue.load(first_row + part * kLanes);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                __m256i isum_i32x8 = _mm256_setzero_si256();
                TMAC_UNROLL
                for (int set = 0; set < kSets; ++set) {
                    const __m256i half = part < 2 ? sums[m][set].first_i16x16 : sums[m][set].second_i16x16;
                    isum_i32x8 = _mm256_add_epi32(isum_i32x8, part % 2 == 0 ? widen_low(half) : widen_high(half));
                }
                const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
                y[m][part] = epilogue.add(terms, isum_i32x8, args.act_scale[at], args.act_sum[at], y[m][part]);
            }
        }
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
