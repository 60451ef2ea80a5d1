#include "core/cpu_features.h"
#include "kernels/averages.h"
#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// The class `lut_fast`: look-ups of Layout::wide_quads, aggregated by rounding averages (kernels/averages.h).
//
//   intrinsic                what it does here                                          Zen 4      Ice Lake
//   _mm512_permutexvar_epi8  vpermb: 64 look-ups in a register of four tables           1 cycle    1 cycle
//   _mm512_avg_epu8          averages 64 pairs of look-ups, rounding up                 0.5        0.5
//   _mm512_dpbusd_epi32      adds a row's four lanes, times +-2^plane, to int32         1          1
//
// Byte 4r + j of 64 is row r: its low nibble table j of a chunk, its high nibble table 4 + j, both of lane j. So a lane
// stays in its byte, all averages are of whole registers, and vpdpbusd comes once per act group instead of twice per
// chunk, with the averages as its unsigned operand and the lanes' signs in the other one.

namespace tmac::avx512 {
namespace {

constexpr int32_t kTileRows = 64;
constexpr int32_t kVectorBytes = 64;  ///< 32 columns of 16 rows
constexpr int kVectors = 4;           ///< of 16 rows in a tile
constexpr int32_t kChunkBytes = kVectors * kVectorBytes;
constexpr int32_t kPrefetch = 4096;  ///< bytes ahead
constexpr int32_t kChunkTableBytes = kAverageColumns / kLutGroup * kLutEntries;

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

/// 2^plane as the bytes of four lanes: added in the first two, subtracted in the other two.
constexpr int32_t signed_weights(int32_t weight) {
    const auto minus = static_cast<uint32_t>(-weight & 0xff);
    return static_cast<int32_t>(minus << 24 | minus << 16 | static_cast<uint32_t>(weight * 0x0101));
}

/// One plane of an act group for V vectors of rows and M tokens: trees over Chunks chunks, added to the sums.
template <int Chunks, bool Prefetch, int V, int M>
TMAC_ALWAYS_INLINE void add_plane(const uint8_t* bytes, const uint8_t* tables, int64_t table_stride,
                                  __m512i weight_i8x64, __m512i (&isum_i32x16)[M][V]) {
    __m512i tree[M][V];     // chunk 0, then chunks 0 and 1, then all
    __m512i pending[M][V];  // chunk 2
    TMAC_UNROLL
    for (int chunk = 0; chunk < Chunks; ++chunk) {
        Nibbles at[V];
        TMAC_UNROLL
        for (int v = 0; v < V; ++v) {
            const uint8_t* vector = bytes + chunk * kChunkBytes + v * kVectorBytes;
            if constexpr (Prefetch) {
                TMAC_PREFETCH(vector + kPrefetch);
            }
            at[v] = indices_of(vector);
        }
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const uint8_t* table = tables + m * table_stride + chunk * kChunkTableBytes;
            const __m512i low_u8x64 = _mm512_loadu_si512(table);
            const __m512i high_u8x64 = _mm512_loadu_si512(table + kAverageLanes * kLutEntries);
            TMAC_UNROLL
            for (int v = 0; v < V; ++v) {
                const __m512i both = _mm512_avg_epu8(_mm512_permutexvar_epi8(at[v].low_u8x64, low_u8x64),
                                                     _mm512_permutexvar_epi8(at[v].high_u8x64, high_u8x64));
                if (chunk == 0) {
                    tree[m][v] = both;
                } else if (chunk == 1) {
                    tree[m][v] = _mm512_avg_epu8(tree[m][v], both);
                } else if (chunk == 2) {
                    pending[m][v] = both;
                } else {
                    tree[m][v] = _mm512_avg_epu8(tree[m][v], _mm512_avg_epu8(pending[m][v], both));
                }
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < M * V; ++i) {
        __m512i& root = tree[i / V][i % V];
        if constexpr (Chunks == 3) {
            const __m512i zero_u8x64 = _mm512_set1_epi32(static_cast<int32_t>(kZeroEntries));
            root = _mm512_avg_epu8(root, _mm512_avg_epu8(pending[i / V][i % V], zero_u8x64));
        }
        __m512i& isum = isum_i32x16[i / V][i % V];
        isum = _mm512_dpbusd_epi32(isum, root, weight_i8x64);
    }
}

/// All planes of an act group.
template <int Bits, int Chunks, int V, int M>
TMAC_ALWAYS_INLINE void add_group(const QgemmArgs& args, const uint8_t* codes, const uint8_t* tables,
                                  __m512i (&isum_i32x16)[M][V]) {
    constexpr bool kOneStream = Bits == 1;  // which the CPU's own prefetchers do not run far enough ahead of
    const Regions regions(args);
    TMAC_UNROLL
    for (int plane = 0; plane < Bits; ++plane) {
        add_plane<Chunks, kOneStream>(regions.in(codes, plane), tables, args.act_stride,
                                      _mm512_set1_epi32(signed_weights(1 << (Bits - 1 - plane))), isum_i32x16);
    }
}

/// V vectors of rows of a tile, from vector `first_vector` on, times M tokens.
template <int Bits, int V, int M>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int first_vector,
                   int32_t token) {
    const uint8_t* codes =
        args.codes + tile * (args.padded_k / kAverageColumns) * kChunkBytes + first_vector * kVectorBytes;
    const auto* tables = static_cast<const uint8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const __m512i zeros_i32x16 = _mm512_set1_epi32(-kAverageOffset * ((1 << Bits) - 1));
    __m512 y[M][V];
    TMAC_UNROLL
    for (int i = 0; i < M * V; ++i) {
        y[i / V][i % V] = _mm512_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kAverageColumns;
        __m512i isum_i32x16[M][V];
        TMAC_UNROLL
        for (int i = 0; i < M * V; ++i) {
            isum_i32x16[i / V][i % V] = zeros_i32x16;
        }
        switch (chunks) {
            case 1:
                add_group<Bits, 1>(args, codes, tables, isum_i32x16);
                break;
            case 2:
                add_group<Bits, 2>(args, codes, tables, isum_i32x16);
                break;
            case 3:
                add_group<Bits, 3>(args, codes, tables, isum_i32x16);
                break;
            default:
                add_group<Bits, 4>(args, codes, tables, isum_i32x16);
        }
        const __m128i levels = _mm_cvtsi32_si128(tree_levels(chunks));
        const GroupPlace values = place_in_tiles(args, tile, kTileRows, args.act_groups[g]);
        TMAC_UNROLL
        for (int v = 0; v < V; ++v) {
            const GroupTerms<Floats> terms = epilogue.load(values + kLanes * (first_vector + v));
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
                const __m512i isum = _mm512_sll_epi32(isum_i32x16[m][v], levels);
                y[m][v] = epilogue.add(terms, isum, args.act_scale[at], args.act_sum[at], y[m][v]);
            }
        }
        codes += chunks * kChunkBytes;
        tables += chunks * kChunkTableBytes;
    }
    TMAC_UNROLL
    for (int i = 0; i < M * V; ++i) {
        const int64_t row = tile * kTileRows + kLanes * (first_vector + i % V);
        store_rows(args.y + (token + i / V) * args.ldy, row, args.row_end, y[i / V][i % V]);
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<2, 1>(args.m, [&]<int M>(int32_t token) {
            constexpr int kAtOnce = kVectors / M;  // trees and sums of all fit the registers
            for (int first = 0; first < kVectors; first += kAtOnce) {
                multiply_rows<Bits, kAtOnce, M>(args, epilogue, tile, first, token);
            }
        });
    }
}

void prepare(const PrepareArgs& args) {
    lut_ctor(args);
    offset_tables(args);
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures =
    kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vbmi | kAvx512vnni;

#define TMAC_ROW(suffix, bits, codebook)                                                                       \
    Kernel {                                                                                                   \
        "qgemm_lut_fast_" suffix "_avx512_vbmi", bits, codebook, kGroup, Method::lut_fast, Layout::wide_quads, \
            bit_of(Layout::wide_quads), kFeatures, qgemm<bits>, prepare                                        \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut_fast = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
