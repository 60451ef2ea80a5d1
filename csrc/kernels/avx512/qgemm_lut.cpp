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
// A 64-byte chunk holds 32 columns of 16 rows of one plane (Layout::quads). Byte 4r + j is row r: its low nibble is
// column group j, its high nibble column group 4 + j, so four neighbouring bytes belong to one row and four tables:
//
//   byte        4r+0      4r+1      4r+2      4r+3
//   low  nibble table 0   table 1   table 2   table 3       index = 00nnnn 01nnnn 10nnnn 11nnnn
//   high nibble table 4   table 5   table 6   table 7
//
// vpdpbusd with the constant 2^plane as its unsigned operand widens, weighs and adds a row's four look-ups at once. The
// int32 sum is exact: a table entry is at most 127, so an act group's sum stays below 127 * 32 * 15.

namespace tmac::avx512 {
namespace {

constexpr int32_t kTileRows = 32;  ///< two registers of 16 rows share every table that is loaded
constexpr int32_t kChunkColumns = 32;
constexpr int32_t kChunkBytes = 128;  ///< 64 bytes for rows 0..15 of the tile, 64 for rows 16..31
constexpr int32_t kTableBytes = kChunkColumns / kLutGroup * kLutEntries;  ///< tables of a chunk: 128
constexpr int32_t kPrefetch = 4096;                                       ///< bytes ahead in every plane

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

/// Halves * 16 rows of a tile, from its half `first_half` on, times M tokens.
template <int Bits, int M, int Halves>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int first_half,
                   int32_t token) {
    const int64_t table_stride = args.act_stride;
    const uint8_t* codes = args.codes + tile * (args.padded_k / kChunkColumns) * kChunkBytes + 64 * first_half;
    const auto* tables = static_cast<const int8_t*>(args.act) + token * table_stride;
    const float* act_scale = args.act_scale + int64_t{token} * args.num_act_groups;
    const float* act_sum = args.act_sum + int64_t{token} * args.num_act_groups;
    __m512 y[M][Halves];
    TMAC_UNROLL
    for (int i = 0; i < M * Halves; ++i) {
        y[i / Halves][i % Halves] = _mm512_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kChunkColumns;
        __m512i isum_i32x16[M][Halves];
        TMAC_UNROLL
        for (int i = 0; i < M * Halves; ++i) {
            isum_i32x16[i / Halves][i % Halves] = _mm512_setzero_si512();
        }
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
            TMAC_UNROLL
            for (int i = 0; i < Bits * Halves; ++i) {
                const int plane = i / Halves;
                const int half = i % Halves;
                const uint8_t* bytes = codes + plane * args.region_stride + 64 * half;
                const __m512i weight_u8x64 = _mm512_set1_epi8(static_cast<char>(1 << (Bits - 1 - plane)));
                _mm_prefetch(reinterpret_cast<const char*>(bytes + kPrefetch), _MM_HINT_T0);
                const Nibbles at = indices_of(bytes);
                TMAC_UNROLL
                for (int m = 0; m < M; ++m) {
                    const int8_t* entries = tables + m * table_stride;
                    const __m512i low_i8x64 = _mm512_permutexvar_epi8(at.low_u8x64, _mm512_loadu_si512(entries));
                    const __m512i high_i8x64 = _mm512_permutexvar_epi8(at.high_u8x64, _mm512_loadu_si512(entries + 64));
                    const __m512i sum = _mm512_dpbusd_epi32(isum_i32x16[m][half], weight_u8x64, low_i8x64);
                    isum_i32x16[m][half] = _mm512_dpbusd_epi32(sum, weight_u8x64, high_i8x64);
                }
            }
            codes += kChunkBytes;
            tables += kTableBytes;
        }
        const int64_t first_row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        TMAC_UNROLL
        for (int half = 0; half < Halves; ++half) {
            const GroupTerms<Floats> terms = epilogue.load(first_row + kLanes * (first_half + half));
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t at = int64_t{m} * args.num_act_groups + g;
                y[m][half] = epilogue.add(terms, isum_i32x16[m][half], act_scale[at], act_sum[at], y[m][half]);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < M * Halves; ++i) {
        const int64_t row = tile * kTileRows + kLanes * (first_half + i % Halves);
        store_rows(args.y + (token + i / Halves) * args.ldy, row, args.row_end, y[i / Halves][i % Halves]);
    }
}

/// A tile times M tokens. One or two tokens' tables stay in registers for both halves; more are read where they are
/// used, and the halves take turns with the registers.
template <int Bits, int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    if constexpr (M <= 2) {
        multiply_rows<Bits, M, 2>(args, epilogue, tile, 0, token);
    } else {
        multiply_rows<Bits, M, 1>(args, epilogue, tile, 0, token);
        multiply_rows<Bits, M, 1>(args, epilogue, tile, 1, token);
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<8, 4, 2, 1>(
            args.m, [&]<int M>(int32_t token) { multiply_tile<Bits, M>(args, epilogue, tile, token); });
    }
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures =
    kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vbmi | kAvx512vnni;

#define TMAC_ROW(suffix, bits, codebook)                                                                               \
    Kernel {                                                                                                           \
        "qgemm_lut_" suffix "_avx512_vbmi", bits, codebook, kGroup, Method::lut, Layout::quads, bit_of(Layout::quads), \
            kFeatures, qgemm<bits>, lut_ctor                                                                           \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
