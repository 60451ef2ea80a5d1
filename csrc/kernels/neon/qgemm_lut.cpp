#include "core/cpu_features.h"
#include "kernels/neon/kernels.h"
#include "kernels/neon/simd.h"

// Bit planes through tables of 16 entries, two tables per instruction.
//
//   intrinsic       what it does here                                                   N1        V1
//   vuzp1q/2q_u16   two rows' column groups 0 1 (4 5) into one register, 2 3 (6 7)      0.5 cyc   0.25 cyc
//   vsriq_n_u8      index of a high nibble: shifts it under the table's number          1         0.5
//   vbslq_u8        index of a low nibble: its number above it                          0.5       0.25
//   vqtbl2q_s8      tbl: 16 look-ups in a pair of tables                                0.5       1
//   vpadalq_s8      sadalp: adds the look-ups of a row's two tables to int16            1         0.5
//
// 32 bytes of Layout::quads hold 32 columns of 8 rows of one plane. Byte 4r + j is row r: its low nibble is column
// group j, its high nibble column group 4 + j. Taking every other pair of bytes puts two groups of a row side by side:
//
//   byte            2r        2r+1                               2r        2r+1
//   first: low      table 0   table 1      index 0000 nnnn       0001 nnnn
//          high     table 4   table 5
//   second: low     table 2   table 3
//          high     table 6   table 7
//
// so that one look-up in two tables and one pairwise add do what a look-up, two widenings and two additions would. No
// int16 sum overflows: an act group has at most 32 look-ups of at most 127, 4064 per plane, so the planes of weight 1,
// 2 and 4 together stay within 28448; the plane of weight 8 is added in int32.

namespace tmac::neon {
namespace {

constexpr int32_t kTileRows = 32;
constexpr int32_t kBlockRows = 8;
constexpr int32_t kBlockBytes = 32;
constexpr int32_t kChunkColumns = 32;
constexpr int32_t kChunkBytes = 128;
constexpr int32_t kTableBytes = kChunkColumns / kLutGroup * kLutEntries;  ///< tables of a chunk: 128
constexpr int32_t kPrefetch = 2048;                                       ///< bytes ahead in every plane
constexpr int kPairs = 4;                                                 ///< of tables in a chunk

/// The indices of 8 rows and 32 columns of one plane, one register per pair of tables in the order of the tables.
struct Indices {
    uint8x16_t at[kPairs];
};

/// A number of tables above a nibble. Shifting a nibble in below leaves the number as it is, so the register serves the
/// next nibble, too.
struct Numbers {
    uint8x16_t first;
    uint8x16_t second;
};

/// A constant, hidden from the compiler, which would rather build it again than keep it in a register.
TMAC_ALWAYS_INLINE uint8x16_t kept(uint8x16_t constant) {
#if defined(__GNUC__)
    __asm__("" : "+w"(constant));
#endif
    return constant;
}

struct Constants {
    uint8x16_t pair = kept(vreinterpretq_u8_u16(vdupq_n_u16(0x1000)));  ///< a byte's table in its pair, above a nibble
    uint8x16_t number_bits = kept(vdupq_n_u8(0xf0));
};

TMAC_ALWAYS_INLINE Indices indices_of(const uint8_t* bytes, const Constants& constants, Numbers& numbers) {
    const uint16x8_t rows03 = vreinterpretq_u16_u8(vld1q_u8(bytes));
    const uint16x8_t rows47 = vreinterpretq_u16_u8(vld1q_u8(bytes + 16));
    const uint8x16_t first = vreinterpretq_u8_u16(vuzp1q_u16(rows03, rows47));
    const uint8x16_t second = vreinterpretq_u8_u16(vuzp2q_u16(rows03, rows47));
    numbers.first = vsriq_n_u8(numbers.first, first, 4);
    numbers.second = vsriq_n_u8(numbers.second, second, 4);
    return {{vbslq_u8(constants.number_bits, constants.pair, first),
             vbslq_u8(constants.number_bits, constants.pair, second), numbers.first, numbers.second}};
}

TMAC_ALWAYS_INLINE int8x16x2_t load_pair(const int8_t* tables, int pair) {
    return vld1q_s8_x2(tables + pair * 2 * kLutEntries);
}

/// int32 sums of 4 of a block's rows over all planes, most significant first.
template <int Bits, int Half>
TMAC_ALWAYS_INLINE int32x4_t total(const int16x8_t (&planes)[Bits]) {
    int16x8_t sum = planes[Bits - 1];
    TMAC_UNROLL
    for (int plane = Bits == 4 ? 1 : 0; plane < Bits - 1; ++plane) {
        sum = vmlaq_n_s16(sum, planes[plane], static_cast<int16_t>(1 << (Bits - 1 - plane)));
    }
    const int32x4_t wide = Half == 0 ? vmovl_s16(vget_low_s16(sum)) : vmovl_high_s16(sum);
    if constexpr (Bits == 4) {
        const int16x4_t top = Half == 0 ? vget_low_s16(planes[0]) : vget_high_s16(planes[0]);
        return vmlal_n_s16(wide, top, 8);
    }
    return wide;
}

/// Blocks * 8 rows of a tile, from its block `first_block` on, times M tokens.
template <int Bits, int M, int Blocks, Levels Known>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int first_block,
                   int32_t token) {
    constexpr int kChains = Bits * Blocks * M < 8 ? 2 : 1;  // sums side by side, so that no addition waits for another
    // Registers of indices that share the load of a table: as many as there are room for beside the sums.
    constexpr int kAtOnce = M > 1 && Blocks * Bits % 2 == 0 ? 2 : 1;
    constexpr int kSteps = Blocks * Bits / kAtOnce;
    const int64_t table_stride = args.act_stride;
    const Regions regions(args);
    const uint8_t* codes =
        args.codes + tile * (args.padded_k / kChunkColumns) * kChunkBytes + first_block * kBlockBytes;
    const auto* tables = static_cast<const int8_t*>(args.act) + token * table_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const Constants constants;
    Numbers numbers = {constants.pair, constants.pair};
    float32x4_t y[M][Blocks][2];
    TMAC_UNROLL
    for (int i = 0; i < M * Blocks; ++i) {
        y[i / Blocks][i % Blocks][0] = y[i / Blocks][i % Blocks][1] = vdupq_n_f32(0.0F);
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kChunkColumns;
        int16x8_t sums[M][Blocks][kChains][Bits];
        TMAC_UNROLL
        for (int i = 0; i < M * Blocks * kChains * Bits; ++i) {
            sums[i / (Blocks * kChains * Bits)][i / (kChains * Bits) % Blocks][i / Bits % kChains][i % Bits] =
                vdupq_n_s16(0);
        }
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
            TMAC_LOOP("lut", Bits, M, kChunkColumns, Blocks * kBlockRows);
            // One variable per pair: gcc would keep an array of pairs in memory.
            const int8x16x2_t pair0 = load_pair(tables, 0);
            const int8x16x2_t pair1 = load_pair(tables, 1);
            const int8x16x2_t pair2 = load_pair(tables, 2);
            const int8x16x2_t pair3 = load_pair(tables, 3);
            TMAC_UNROLL
            for (int i = 0; i < kSteps; ++i) {
                Indices indices[kAtOnce];
                TMAC_UNROLL
                for (int j = 0; j < kAtOnce; ++j) {
                    const int block = (i * kAtOnce + j) / Bits;
                    const uint8_t* bytes = regions.in(codes, (i * kAtOnce + j) % Bits) + block * kBlockBytes;
                    if (block % 2 == 0) {
                        TMAC_PREFETCH(bytes + kPrefetch);
                    }
                    indices[j] = indices_of(bytes, constants, numbers);
                }
                if constexpr (M == 1) {
                    int16x8_t& first = sums[0][i / Bits][0][i % Bits];
                    int16x8_t& second = sums[0][i / Bits][kChains - 1][i % Bits];
                    first = vpadalq_s8(first, vqtbl2q_s8(pair0, indices[0].at[0]));
                    second = vpadalq_s8(second, vqtbl2q_s8(pair1, indices[0].at[1]));
                    first = vpadalq_s8(first, vqtbl2q_s8(pair2, indices[0].at[2]));
                    second = vpadalq_s8(second, vqtbl2q_s8(pair3, indices[0].at[3]));
                    continue;
                }
                TMAC_UNROLL
                for (int n = 0; n < M * kPairs; ++n) {
                    const int pair = n % kPairs;
                    const int8x16x2_t entries = load_pair(tables + n / kPairs * table_stride, pair);
                    TMAC_UNROLL
                    for (int j = 0; j < kAtOnce; ++j) {
                        const int at = i * kAtOnce + j;
                        int16x8_t& sum = sums[n / kPairs][at / Bits][pair % kChains][at % Bits];
                        sum = vpadalq_s8(sum, vqtbl2q_s8(entries, indices[j].at[pair]));
                    }
                }
            }
            codes += kChunkBytes;
            tables += kTableBytes;
        }
        const GroupPlace values = place_in_tiles(args, tile, kTileRows, args.act_groups[g]);
        TMAC_UNROLL
        for (int block = 0; block < Blocks; ++block) {
            const GroupPlace place = values + (first_block + block) * kBlockRows;
            const GroupTerms<Floats> low_terms = epilogue.load<Known>(place);
            const GroupTerms<Floats> high_terms = epilogue.load<Known>(place + kLanes);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
                int16x8_t planes[Bits];
                TMAC_UNROLL
                for (int plane = 0; plane < Bits; ++plane) {
                    planes[plane] = sums[m][block][0][plane];
                    if constexpr (kChains == 2) {
                        planes[plane] = vaddq_s16(planes[plane], sums[m][block][1][plane]);
                    }
                }
                float32x4_t(&rows)[2] = y[m][block];
                const float scale = args.act_scale[at];
                const float sum = args.act_sum[at];
                rows[0] = epilogue.add(low_terms, total<Bits, 0>(planes), scale, sum, rows[0]);
                rows[1] = epilogue.add(high_terms, total<Bits, 1>(planes), scale, sum, rows[1]);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < M * Blocks; ++i) {
        const int64_t row = tile * kTileRows + (first_block + i % Blocks) * kBlockRows;
        float* rows = args.y + (token + i / Blocks) * args.ldy;
        store_rows(rows, row, args.row_end, y[i / Blocks][i % Blocks][0]);
        store_rows(rows, row + kLanes, args.row_end, y[i / Blocks][i % Blocks][1]);
    }
}

/// Rows in flight, as many as 32 registers hold beside the tables: the more of them, the fewer loads of tables.
template <int Bits, int M>
constexpr int blocks_of() {
    return Bits * M <= 2 ? 4 : Bits * M <= 4 ? 2 : 1;
}

template <int Bits, int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    constexpr int kBlocks = blocks_of<Bits, M>();
    with_levels<M>(args, [&]<Levels Known>() {
        for (int block = 0; block < kTileRows / kBlockRows; block += kBlocks) {
            multiply_rows<Bits, M, kBlocks, Known>(args, epilogue, tile, block, token);
        }
    });
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<4, 2, 1>(
            args.m, [&]<int M>(int32_t token) { multiply_tile<Bits, M>(args, epilogue, tile, token); });
    }
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);

#define TMAC_ROW(suffix, bits, codebook)                                                                               \
    Kernel {                                                                                                           \
        "qgemm_lut_" suffix "_neon", bits, codebook, kGroup, Method::lut, Layout::quads, bit_of(Layout::quads), kNeon, \
            qgemm<bits>, lut_ctor                                                                                      \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::neon
