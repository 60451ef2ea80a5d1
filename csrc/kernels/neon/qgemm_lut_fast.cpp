#include "core/cpu_features.h"
#include "kernels/averages.h"
#include "kernels/neon/kernels.h"
#include "kernels/neon/simd.h"

// The class `lut_fast`: look-ups of Layout::quads, aggregated by rounding averages (kernels/averages.h).
//
//   intrinsic       what it does here                                                   N1        V1
//   vqtbl2q_u8      tbl: 16 look-ups in a pair of tables                                0.5 cyc   1 cyc
//   vrhaddq_u8      urhadd: averages 16 pairs of look-ups, rounding up                  0.5       0.25
//   vpaddlq_u8      uaddlp: adds a row's two lanes to 16 bits                           0.5       0.5
//
// Byte 4r + j of 32 is row r: its low nibble table j of a chunk, its high nibble table 4 + j, both of lane j. Taking
// every other pair of bytes puts two lanes of a row side by side, as in qgemm_lut.cpp: lanes 0 and 1 of 8 rows in one
// register, lanes 2 and 3 in the other. All averages are of whole registers; a row's lanes are added once per act
// group.
//
// No int16 sum overflows: a plane adds at most 510 * 2^plane and takes away as much, 15 * 510 = 7650 in all.

namespace tmac::neon {
namespace {

constexpr int32_t kTileRows = 32;
constexpr int32_t kBlockRows = 8;
constexpr int32_t kBlockBytes = 32;
constexpr int32_t kChunkBytes = 128;
constexpr int32_t kPairBytes = 2 * kLutEntries;
constexpr int32_t kChunkTableBytes = kAverageColumns / kLutGroup * kLutEntries;
constexpr int32_t kPrefetch = 2048;  ///< bytes ahead in every plane

/// Bytes of 8 rows, two neighbouring lanes each.
struct Lanes {
    uint8x16_t first;   ///< lanes 0 and 1
    uint8x16_t second;  ///< lanes 2 and 3
};

TMAC_ALWAYS_INLINE Lanes average(const Lanes& a, const Lanes& b) {
    return {vrhaddq_u8(a.first, b.first), vrhaddq_u8(a.second, b.second)};
}

/// Indices into pairs of tables: of the low nibbles in tables 0 to 3, of the high ones in tables 4 to 7.
struct Indices {
    Lanes low;
    Lanes high;
};

TMAC_ALWAYS_INLINE Indices indices_of(const uint8_t* bytes) {
    const uint8x16_t pair_u8x16 = vreinterpretq_u8_u16(vdupq_n_u16(0x1000));  // a byte's table in its pair
    const uint8x16_t number_bits_u8x16 = vdupq_n_u8(0xf0);
    const uint16x8_t rows03 = vreinterpretq_u16_u8(vld1q_u8(bytes));
    const uint16x8_t rows47 = vreinterpretq_u16_u8(vld1q_u8(bytes + 16));
    const uint8x16_t first = vreinterpretq_u8_u16(vuzp1q_u16(rows03, rows47));
    const uint8x16_t second = vreinterpretq_u8_u16(vuzp2q_u16(rows03, rows47));
    return {{vbslq_u8(number_bits_u8x16, pair_u8x16, first), vbslq_u8(number_bits_u8x16, pair_u8x16, second)},
            {vsriq_n_u8(pair_u8x16, first, 4), vsriq_n_u8(pair_u8x16, second, 4)}};
}

/// A chunk's look-ups of one plane, low and high nibbles averaged: the first level of the trees.
TMAC_ALWAYS_INLINE Lanes look_up(const uint8_t* tables, const Indices& at) {
    const uint8x16x2_t pair0 = vld1q_u8_x2(tables);
    const uint8x16x2_t pair1 = vld1q_u8_x2(tables + kPairBytes);
    const uint8x16x2_t pair2 = vld1q_u8_x2(tables + 2 * kPairBytes);
    const uint8x16x2_t pair3 = vld1q_u8_x2(tables + 3 * kPairBytes);
    return average({vqtbl2q_u8(pair0, at.low.first), vqtbl2q_u8(pair1, at.low.second)},
                   {vqtbl2q_u8(pair2, at.high.first), vqtbl2q_u8(pair3, at.high.second)});
}

/// One plane of an act group for 8 rows and M tokens: trees over Chunks chunks, added to the sums.
template <int Chunks, int M>
TMAC_ALWAYS_INLINE void add_plane(const uint8_t* bytes, const uint8_t* tables, int64_t table_stride, int16_t weight,
                                  int16x8_t (&sums)[M]) {
    Lanes tree[M];     // chunk 0, then chunks 0 and 1, then all
    Lanes pending[M];  // chunk 2
    TMAC_UNROLL
    for (int chunk = 0; chunk < Chunks; ++chunk) {
        TMAC_PREFETCH(bytes + chunk * kChunkBytes + kPrefetch);
        const Indices at = indices_of(bytes + chunk * kChunkBytes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const Lanes both = look_up(tables + m * table_stride + chunk * kChunkTableBytes, at);
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
            const Lanes zeros = {vdupq_n_u8(kZeroEntries & 0xff), vdupq_n_u8(kZeroEntries >> 24)};
            tree[m] = average(tree[m], average(pending[m], zeros));
        }
        const uint16x8_t sum = vsubq_u16(vpaddlq_u8(tree[m].first), vpaddlq_u8(tree[m].second));
        sums[m] = vmlaq_n_s16(sums[m], vreinterpretq_s16_u16(sum), weight);
    }
}

/// All planes of an act group.
template <int Bits, int Chunks, int M>
TMAC_ALWAYS_INLINE void add_group(const QgemmArgs& args, const uint8_t* codes, const uint8_t* tables,
                                  int16x8_t (&sums)[M]) {
    const Regions regions(args);
    TMAC_UNROLL
    for (int plane = 0; plane < Bits; ++plane) {
        add_plane<Chunks>(regions.in(codes, plane), tables, args.act_stride,
                          static_cast<int16_t>(1 << (Bits - 1 - plane)), sums);
    }
}

/// A block of 8 rows of a tile times M tokens.
template <int Bits, int M>
void multiply_block(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int block, int32_t token) {
    const uint8_t* codes = args.codes + tile * (args.padded_k / kAverageColumns) * kChunkBytes + block * kBlockBytes;
    const auto* tables = static_cast<const uint8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const int16x8_t zeros_i16x8 = vdupq_n_s16(-kAverageOffset * ((1 << Bits) - 1));
    float32x4_t y[M][2];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        y[m][0] = y[m][1] = vdupq_n_f32(0.0F);
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kAverageColumns;
        int16x8_t sums[M];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            sums[m] = zeros_i16x8;
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
        const int32x4_t levels = vdupq_n_s32(tree_levels(chunks));
        const GroupPlace place = place_in_tiles(args, tile, kTileRows, args.act_groups[g]) + block * kBlockRows;
        const GroupTerms<Floats> low_terms = epilogue.load(place);
        const GroupTerms<Floats> high_terms = epilogue.load(place + kLanes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
            const float scale = args.act_scale[at];
            const float sum = args.act_sum[at];
            const int32x4_t low = vshlq_s32(vmovl_s16(vget_low_s16(sums[m])), levels);
            const int32x4_t high = vshlq_s32(vmovl_high_s16(sums[m]), levels);
            y[m][0] = epilogue.add(low_terms, low, scale, sum, y[m][0]);
            y[m][1] = epilogue.add(high_terms, high, scale, sum, y[m][1]);
        }
        codes += chunks * kChunkBytes;
        tables += chunks * kChunkTableBytes;
    }
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        float* rows = args.y + (token + m) * args.ldy;
        const int64_t row = tile * kTileRows + block * kBlockRows;
        store_rows(rows, row, args.row_end, y[m][0]);
        store_rows(rows, row + kLanes, args.row_end, y[m][1]);
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<2, 1>(args.m, [&]<int M>(int32_t token) {
            for (int block = 0; block < kTileRows / kBlockRows; ++block) {
                multiply_block<Bits, M>(args, epilogue, tile, block, token);
            }
        });
    }
}

void prepare(const PrepareArgs& args) {
    lut_ctor(args);
    offset_tables(args);
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);

#define TMAC_ROW(suffix, bits, codebook)                                                           \
    Kernel {                                                                                       \
        "qgemm_lut_fast_" suffix "_neon", bits, codebook, kGroup, Method::lut_fast, Layout::quads, \
            bit_of(Layout::quads), kNeon, qgemm<bits>, prepare                                     \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut_fast = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::neon
