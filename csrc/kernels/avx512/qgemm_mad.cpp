#include "core/cpu_features.h"
#include "kernels/avx512/kernels.h"
#include "kernels/avx512/simd.h"

// Codes of 5 to 8 bits times int8 activations by vpdpbusd, exact in int32.
//
// 64 bytes of each region hold 8 columns of 16 rows (Layout::nibbles): byte 4r + j has half of the code of column j in
// its low nibble and of column 4 + j in its high nibble. Two shifts and two ternary logics join the halves:
//
//   columns 0..3   (top << 4 & f0) | (low      & 0f)
//   columns 4..7   (top      & f0) | (low >> 4 & 0f)
//
// The bytes are u = code * 2^(8 - bits). Starting the sum at -128 * sum(q) counts codes from 2^(bits-1), and the exact
// factor 2^(8 - bits) is shifted out at the end.

namespace tmac::avx512 {
namespace {

constexpr int32_t kTileRows = 16;
constexpr int32_t kChunkColumns = 8;
constexpr int32_t kChunkBytes = 64;
constexpr int32_t kPrefetch = 4096;

struct Codes {
    __m512i first_u8x64;   ///< columns 0..3
    __m512i second_u8x64;  ///< columns 4..7
};

TMAC_ALWAYS_INLINE Codes join(const uint8_t* top_bytes, const uint8_t* low_bytes) {
    const __m512i high_half = _mm512_set1_epi8(static_cast<char>(0xf0));
    const __m512i top = _mm512_loadu_si512(top_bytes);
    const __m512i low = _mm512_loadu_si512(low_bytes);
    constexpr int kSelect = 0xca;  // a ? b : c, bit by bit
    return {_mm512_ternarylogic_epi32(high_half, _mm512_slli_epi16(top, 4), low, kSelect),
            _mm512_ternarylogic_epi32(high_half, top, _mm512_srli_epi16(low, 4), kSelect)};
}

TMAC_ALWAYS_INLINE __m512i broadcast_four(const int8_t* q) {
    int32_t word = 0;
    std::memcpy(&word, q, sizeof(word));
    return _mm512_set1_epi32(word);
}

template <int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    const uint8_t* codes = args.codes + tile * (args.padded_k / kChunkColumns) * kChunkBytes;
    const auto* q = static_cast<const int8_t*>(args.act) + token * args.padded_k;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const __m128i shift = _mm_cvtsi32_si128(8 - args.spec->bits);
    __m512 y[M];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        y[m] = _mm512_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kChunkColumns;
        __m512i isum_i32x16[M];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            isum_i32x16[m] =
                _mm512_set1_epi32(-128 * args.act_isum[first_group + int64_t{m} * args.num_act_groups + g]);
        }
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(codes + args.region_stride + kPrefetch), _MM_HINT_T0);
            const Codes u = join(codes, codes + args.region_stride);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int8_t* eight = q + m * args.padded_k;
                const __m512i sum = _mm512_dpbusd_epi32(isum_i32x16[m], u.first_u8x64, broadcast_four(eight));
                isum_i32x16[m] = _mm512_dpbusd_epi32(sum, u.second_u8x64, broadcast_four(eight + 4));
            }
            codes += kChunkBytes;
            q += kChunkColumns;
        }
        const int64_t row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        const GroupTerms<Floats> terms = epilogue.load(row);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
            const __m512i isum = _mm512_sra_epi32(isum_i32x16[m], shift);
            y[m] = epilogue.add(terms, isum, args.act_scale[at], args.act_sum[at], y[m]);
        }
    }
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        store_rows(args.y + (token + m) * args.ldy, tile * kTileRows, args.row_end, y[m]);
    }
}

void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>(1 << (args.spec->bits - 1)));
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<8, 4, 2, 1>(args.m,
                                         [&]<int M>(int32_t token) { multiply_tile<M>(args, epilogue, tile, token); });
    }
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni;

#define TMAC_ROW(suffix, bits)                                                                             \
    Kernel {                                                                                               \
        "qgemm_mad_" suffix "_avx512_vnni", bits, Codebook::uniform, kGroup, Method::mad, Layout::nibbles, \
            bit_of(Layout::nibbles), kFeatures, qgemm, act_quant                                           \
    }

constinit const Kernel rows[] = {TMAC_ROW("w5", 5), TMAC_ROW("w6", 6), TMAC_ROW("w7", 7), TMAC_ROW("w8", 8)};

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
