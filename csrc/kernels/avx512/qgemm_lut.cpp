#include "core/cpu_features.h"
#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// Bit planes through tables of 16 entries, four tables per instruction.
//
//   intrinsic                what it does here                                          Zen 4      Ice Lake
//   _mm512_ternarylogic      (nibble & 0x0f) | number of the table, in one step         0.5 cycle  1 cycle
//   _mm512_permutexvar_epi8  vpermb: 64 look-ups in a register of four tables           1          1
//   _mm512_dpbusd_epi32      adds four neighbouring bytes, times 2^plane, to int32      1          1
//
// 64 bytes hold 32 columns of 16 rows of one plane (Layout::wide_quads). Byte 4r + j is row r: its low nibble is column
// group j, its high nibble column group 4 + j, so four neighbouring bytes belong to one row and four tables:
//
//   byte        4r+0      4r+1      4r+2      4r+3
//   low  nibble table 0   table 1   table 2   table 3       index = 00nnnn 01nnnn 10nnnn 11nnnn
//   high nibble table 4   table 5   table 6   table 7
//
// vpdpbusd with the constant 2^plane as its unsigned operand widens, weighs and adds a row's four look-ups at once. The
// int32 sum is exact: a table entry is at most 127, so an act group's sum stays below 127 * 32 * 15.
//
// A tile has 64 rows because tables are four times as large as the activations: read once for every 16 or 32 rows, they
// would come from the L2 cache, and take the turns of the codes that stream through it (docs/kernels.md).

namespace tmac::avx512 {
namespace {

constexpr int32_t kTileRows = 64;
constexpr int kVectors = 4;  ///< registers of 16 rows in a tile
constexpr int32_t kChunkColumns = 32;
constexpr int32_t kChunkBytes = 256;
constexpr int32_t kPrefetch = 2048;  ///< bytes ahead in every plane, where several tokens dwell on a chunk
constexpr int32_t kTableBytes = kChunkColumns / kLutGroup * kLutEntries;  ///< tables of a chunk: 128

struct Nibbles {
    __m512i low_u8x64;
    __m512i high_u8x64;
};

/// The 128 nibbles of 64 bytes as indices into two registers of four tables.
TMAC_ALWAYS_INLINE Nibbles indices_of(const uint8_t* bytes) {
    const __m512i mask_u8x64 = _mm512_set1_epi8(0x0f);
    const __m512i table_u8x64 = _mm512_set1_epi32(0x30201000);
    const __m512i v_u8x64 = _mm512_loadu_si512(bytes);
    constexpr int kAndOr = 0xea;  // (a & b) | c
    return {_mm512_ternarylogic_epi32(v_u8x64, mask_u8x64, table_u8x64, kAndOr),
            _mm512_ternarylogic_epi32(_mm512_srli_epi16(v_u8x64, 4), mask_u8x64, table_u8x64, kAndOr)};
}

/// A tile times M tokens.
template <int Bits, int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    const int64_t table_stride = args.act_stride;
    const uint8_t* codes = args.codes + tile * (args.padded_k / kChunkColumns) * kChunkBytes;
    const auto* tables = static_cast<const int8_t*>(args.act) + token * table_stride;
    const float* act_scale = args.act_scale + int64_t{token} * args.num_act_groups;
    const float* act_sum = args.act_sum + int64_t{token} * args.num_act_groups;
    __m512 y[M][kVectors];
    TMAC_UNROLL
    for (int i = 0; i < M * kVectors; ++i) {
        y[i / kVectors][i % kVectors] = _mm512_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kChunkColumns;
        __m512i isum_i32x16[M][kVectors];
        TMAC_UNROLL
        for (int i = 0; i < M * kVectors; ++i) {
            isum_i32x16[i / kVectors][i % kVectors] = _mm512_setzero_si512();
        }
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
            TMAC_UNROLL
            for (int plane = 0; plane < Bits; ++plane) {
                const __m512i weight_u8x64 = _mm512_set1_epi8(static_cast<char>(1 << (Bits - 1 - plane)));
                Nibbles at[kVectors];
                TMAC_UNROLL
                for (int v = 0; v < kVectors; ++v) {
                    const uint8_t* bytes = codes + plane * args.region_stride + 64 * v;
                    if constexpr (M > 1) {
                        TMAC_PREFETCH(bytes + kPrefetch);
                    }
                    at[v] = indices_of(bytes);
                }
                TMAC_UNROLL
                for (int m = 0; m < M; ++m) {
                    const __m512i low_i8x64 = _mm512_loadu_si512(tables + m * table_stride);
                    const __m512i high_i8x64 = _mm512_loadu_si512(tables + m * table_stride + 64);
                    TMAC_UNROLL
                    for (int v = 0; v < kVectors; ++v) {
                        __m512i& sum = isum_i32x16[m][v];
                        sum =
                            _mm512_dpbusd_epi32(sum, weight_u8x64, _mm512_permutexvar_epi8(at[v].low_u8x64, low_i8x64));
                        sum = _mm512_dpbusd_epi32(sum, weight_u8x64,
                                                  _mm512_permutexvar_epi8(at[v].high_u8x64, high_i8x64));
                    }
                }
            }
            codes += kChunkBytes;
            tables += kTableBytes;
        }
        const int64_t first_row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        TMAC_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            const GroupTerms<Floats> terms = epilogue.load(first_row + kLanes * v);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t at = int64_t{m} * args.num_act_groups + g;
                y[m][v] = epilogue.add(terms, isum_i32x16[m][v], act_scale[at], act_sum[at], y[m][v]);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < M * kVectors; ++i) {
        const int64_t row = tile * kTileRows + kLanes * (i % kVectors);
        store_rows(args.y + (token + i / kVectors) * args.ldy, row, args.row_end, y[i / kVectors][i % kVectors]);
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<4, 3, 2, 1>(
            args.m, [&]<int M>(int32_t token) { multiply_tile<Bits, M>(args, epilogue, tile, token); });
    }
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures =
    kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vbmi | kAvx512vnni;

#define TMAC_ROW(suffix, bits, codebook)                                                             \
    Kernel {                                                                                         \
        "qgemm_lut_" suffix "_avx512_vbmi", bits, codebook, kGroup, Method::lut, Layout::wide_quads, \
            bit_of(Layout::wide_quads), kFeatures, qgemm<bits>, lut_ctor                             \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
