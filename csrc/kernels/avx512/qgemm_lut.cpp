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
// 64 bytes hold 32 columns of 16 rows of one plane. Byte 4r + j is row r: its low nibble is column group j, its high
// nibble column group 4 + j, so four neighbouring bytes belong to one row and four tables:
//
//   byte        4r+0      4r+1      4r+2      4r+3
//   low  nibble table 0   table 1   table 2   table 3       index = 00nnnn 01nnnn 10nnnn 11nnnn
//   high nibble table 4   table 5   table 6   table 7
//
// vpdpbusd with the constant 2^plane as its unsigned operand widens, weighs and adds a row's four look-ups at once. The
// int32 sum is exact: a table entry is at most 127, so an act group's sum stays below 127 * 32 * 15.
//
// Layout::bands brings all rows' codes of one act group before the next group's: its tables are read once, into eight
// registers or at least the L1 cache, while codes stream by. With rows outside, tables (four times as large as the
// activations) would be read anew for every few rows, and chase the codes out of the L1 cache (docs/kernels.md).

namespace tmac::avx512 {
namespace {

constexpr int32_t kChunkColumns = 32;
constexpr int32_t kChunkBytes = 256;                                      ///< of 64 rows
constexpr int32_t kTableBytes = kChunkColumns / kLutGroup * kLutEntries;  ///< tables of a chunk: 128
constexpr int kVectors = 4;          ///< registers of 16 rows that several tokens share
constexpr int32_t kBlockRows = 64;   ///< of kVectors registers; row ranges are multiples of it
constexpr int32_t kMostChunks = 4;   ///< of an act group of 128 columns
constexpr int32_t kPrefetch = 2048;  ///< bytes ahead in every plane, where several tokens dwell on a chunk

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

template <int Bits>
TMAC_ALWAYS_INLINE __m512i weight_of(int plane) {
    return _mm512_set1_epi8(static_cast<char>(1 << (Bits - 1 - plane)));
}

/// sum + weight * (look-ups of 64 nibbles, four neighbours added).
TMAC_ALWAYS_INLINE __m512i look_up(__m512i sum_i32x16, __m512i weight_u8x64, __m512i at_u8x64, __m512i table_i8x64) {
    return _mm512_dpbusd_epi32(sum_i32x16, weight_u8x64, _mm512_permutexvar_epi8(at_u8x64, table_i8x64));
}

/// Some rows of a band, times one act group. Results stay in `y`, [token][kBandRows] from the first row on, until the
/// band's last act group: written to where they belong, a power of two apart, they would drive each other out of the
/// cache.
struct Piece {
    const uint8_t* codes;  ///< of the first 64 rows, in the first plane
    const int8_t* tables;  ///< of the first token
    float* y;
    int64_t rows;       ///< a multiple of 64
    GroupPlace values;  ///< of the first row
    int32_t chunks;     ///< of the act group
    int32_t group;
};

/// The codes of one chunk of 64 rows and one plane as indices.
struct Chunk {
    Nibbles at[kVectors];

    TMAC_ALWAYS_INLINE explicit Chunk(const uint8_t* bytes) {
        TMAC_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            at[v] = indices_of(bytes + 64 * v);
        }
    }
};

/// Group values of any kind of these levels.
template <Levels Known>
struct AnyTerms {
    const Epilogue<Floats>& epilogue;

    TMAC_ALWAYS_INLINE GroupTerms<Floats> load(const GroupPlace& place) const { return epilogue.load<Known>(place); }
    TMAC_ALWAYS_INLINE __m512 add(const GroupTerms<Floats>& terms, __m512i isum, float act_scale, float act_sum,
                                  __m512 y) const {
        return epilogue.add(terms, isum, act_scale, act_sum, y);
    }
};

/// Those of two levels, without a branch for each register.
template <bool Offsets>
struct KnownTerms : TwoLevelTerms<Floats, Offsets> {
    using TwoLevelTerms<Floats, Offsets>::TwoLevelTerms;

    TMAC_ALWAYS_INLINE __m512 add(const GroupTerms<Floats>& terms, __m512i isum, float act_scale, float act_sum,
                                  __m512 y) const {
        return Epilogue<Floats>::add_known<true>(terms, isum, act_scale, act_sum, y);
    }
};

/// One token; the tables of `Chunks` chunks stay in registers for all rows.
template <int Bits, int Chunks, class Terms>
void multiply_token(const QgemmArgs& args, const Terms& group_terms, const Piece& piece) {
    const Terms terms = group_terms;  // what is copied is known not to change when results are stored
    __m512i tables_i8x64[2 * Chunks];
    TMAC_UNROLL
    for (int i = 0; i < 2 * Chunks; ++i) {
        tables_i8x64[i] = _mm512_loadu_si512(piece.tables + 64 * i);
    }
    const float act_scale = args.act_scale[piece.group];
    const float act_sum = args.act_sum[piece.group];
    const Regions regions(args);
    const uint8_t* codes = piece.codes;
    for (int64_t row = 0; row < piece.rows; row += kBlockRows) {
        __m512i isum_i32x16[kVectors];
        TMAC_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            isum_i32x16[v] = _mm512_setzero_si512();
        }
        TMAC_UNROLL
        for (int i = 0; i < Bits * Chunks; ++i) {
            const int chunk = i / Bits;
            const int plane = i % Bits;
            const __m512i weight = weight_of<Bits>(plane);
            TMAC_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                const Nibbles at = indices_of(regions.in(codes, plane) + kChunkBytes * chunk + 64 * v);
                const __m512i sum = look_up(isum_i32x16[v], weight, at.low_u8x64, tables_i8x64[2 * chunk]);
                isum_i32x16[v] = look_up(sum, weight, at.high_u8x64, tables_i8x64[2 * chunk + 1]);
            }
        }
        TMAC_UNROLL
        for (int v = 0; v < kVectors; ++v) {
            float* y = piece.y + row + kLanes * v;
            _mm512_store_ps(y, terms.add(terms.load(piece.values + (row + kLanes * v)), isum_i32x16[v], act_scale,
                                         act_sum, _mm512_load_ps(y)));
        }
        codes += kChunkBytes * Chunks;
    }
}

/// 64 rows, from `row` of the piece on, times M tokens. What is read of the tables serves four registers of rows.
template <int Bits, int M>
void multiply_block(const QgemmArgs& args, const Epilogue<Floats>& epilogue, const Piece& piece, int64_t row,
                    int32_t token) {
    const int64_t table_stride = args.act_stride;
    const Regions regions(args);
    const uint8_t* codes = piece.codes + row / kBlockRows * piece.chunks * kChunkBytes;
    const int8_t* tables = piece.tables + token * table_stride;
    __m512i isum_i32x16[M][kVectors];
    TMAC_UNROLL
    for (int i = 0; i < M * kVectors; ++i) {
        isum_i32x16[i / kVectors][i % kVectors] = _mm512_setzero_si512();
    }
    for (int32_t chunk = 0; chunk < piece.chunks; ++chunk) {
        TMAC_UNROLL
        for (int plane = 0; plane < Bits; ++plane) {
            const __m512i weight = weight_of<Bits>(plane);
            const uint8_t* bytes = regions.in(codes, plane);
            TMAC_UNROLL
            for (int v = 0; v < kVectors; ++v) {
                TMAC_PREFETCH(bytes + kPrefetch + 64 * v);
            }
            const Chunk indices(bytes);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m512i low_i8x64 = _mm512_loadu_si512(tables + m * table_stride);
                const __m512i high_i8x64 = _mm512_loadu_si512(tables + m * table_stride + 64);
                TMAC_UNROLL
                for (int v = 0; v < kVectors; ++v) {
                    const __m512i sum = look_up(isum_i32x16[m][v], weight, indices.at[v].low_u8x64, low_i8x64);
                    isum_i32x16[m][v] = look_up(sum, weight, indices.at[v].high_u8x64, high_i8x64);
                }
            }
        }
        codes += kChunkBytes;
        tables += kTableBytes;
    }
    const int64_t groups = args.num_act_groups;
    const float* act_scale = args.act_scale + token * groups + piece.group;
    const float* act_sum = args.act_sum + token * groups + piece.group;
    float* results = piece.y + token * kBandRows + row;
    TMAC_UNROLL
    for (int v = 0; v < kVectors; ++v) {
        const GroupTerms<Floats> terms = epilogue.load(piece.values + (row + v * kLanes));
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            float* y = results + m * kBandRows + v * kLanes;
            _mm512_store_ps(y, epilogue.add(terms, isum_i32x16[m][v], act_scale[m * groups], act_sum[m * groups],
                                            _mm512_load_ps(y)));
        }
    }
}

template <int Bits>
void multiply_piece(const QgemmArgs& args, const Epilogue<Floats>& epilogue, const Piece& piece) {
    if (args.m > 1) {
        for (int64_t row = 0; row < piece.rows; row += kBlockRows) {
            for_each_token_block<4, 3, 2, 1>(
                args.m, [&]<int M>(int32_t token) { multiply_block<Bits, M>(args, epilogue, piece, row, token); });
        }
        return;
    }
    if (args.scale_type == GroupType::i8) {  // one chunk: groups of at most 32 columns
        if (args.spec->zero_point == ZeroPoint::offset) {
            return multiply_token<Bits, 1>(args, KnownTerms<true>(args, epilogue.centre), piece);
        }
        if (epilogue.has_coefficient) {
            return multiply_token<Bits, 1>(args, KnownTerms<false>(args, epilogue.centre), piece);
        }
        return multiply_token<Bits, 1>(args, AnyTerms<Levels::two>{epilogue}, piece);
    }
    const AnyTerms<Levels::one> terms{epilogue};
    switch (piece.chunks) {
        case 1:
            return multiply_token<Bits, 1>(args, terms, piece);
        case 2:
            return multiply_token<Bits, 2>(args, terms, piece);
        case 3:
            return multiply_token<Bits, 3>(args, terms, piece);
        default:
            return multiply_token<Bits, kMostChunks>(args, terms, piece);
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
        const int32_t first_chunk = group.padded_begin / kChunkColumns;
        multiply_piece<Bits>(args, epilogue,
                             {args.codes + place.codes(args.padded_k, group),
                              static_cast<const int8_t*>(args.act) + int64_t{first_chunk} * kTableBytes, y[0], rows,
                              place_in_band(args, place, group), group.padded_count / kChunkColumns, g});
    }
    for (int32_t token = 0; token < args.m; ++token) {
        for (int64_t at = 0; at < rows; at += kLanes) {
            store_rows(args.y + token * args.ldy, row + at, row_end, _mm512_load_ps(y[token] + at));
        }
    }
}

template <int Bits>
void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>((1 << Bits) - 1) * 0.5F);
    for_each_band(args, [&](int64_t row, int64_t row_end) { multiply_band<Bits>(args, epilogue, row, row_end); });
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures =
    kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vbmi | kAvx512vnni;

#define TMAC_ROW(suffix, bits, codebook)                                                                               \
    Kernel {                                                                                                           \
        "qgemm_lut_" suffix "_avx512_vbmi", bits, codebook, kGroup, Method::lut, Layout::bands, bit_of(Layout::bands), \
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
