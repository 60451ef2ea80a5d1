#include "core/cpu_features.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/simd.h"

// Codes of 5 to 8 bits times int8 activations without VNNI, exact in int32.
//
// 64 bytes of each region hold 8 columns of 16 rows (Layout::nibbles); here they are two halves of 8 rows. The halves
// of a code are joined to u = code * 2^(8 - bits) as in the AVX-512 kernel. vpmaddubsw saturates at int16, so it cannot
// take u (up to 255) itself: c = u - 128 lies in -128..127, and |c| * (q with c's sign) = c * q, where a pair's sum is
// at most 2 * 128 * 127 = 32512. The exact factor 2^(8 - bits) is shifted out at the end.

namespace tmac::avx2 {
namespace {

constexpr int32_t kTileRows = 16;
constexpr int32_t kChunkColumns = 8;
constexpr int32_t kChunkBytes = 64;
constexpr int32_t kHalfBytes = 32;  ///< 8 rows
constexpr int32_t kPrefetch = 4096;

struct Codes {
    __m256i first_i8x32;   ///< columns 0..3, code - 128
    __m256i second_i8x32;  ///< columns 4..7
};

TMAC_ALWAYS_INLINE Codes join(const uint8_t* top_bytes, const uint8_t* low_bytes) {
    const __m256i low_half = _mm256_set1_epi8(0x0f);
    const __m256i minus_128 = _mm256_set1_epi8(static_cast<char>(0x80));
    const __m256i top = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(top_bytes));
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(low_bytes));
    const __m256i first =
        _mm256_or_si256(_mm256_slli_epi16(_mm256_and_si256(top, low_half), 4), _mm256_and_si256(low, low_half));
    const __m256i second =
        _mm256_or_si256(_mm256_andnot_si256(low_half, top), _mm256_and_si256(_mm256_srli_epi16(low, 4), low_half));
    return {_mm256_xor_si256(first, minus_128), _mm256_xor_si256(second, minus_128)};
}

/// Four columns' products of 8 rows, added to int32.
TMAC_ALWAYS_INLINE __m256i add_products(__m256i isum_i32x8, __m256i codes_i8x32, const int8_t* q) {
    int32_t word = 0;
    std::memcpy(&word, q, sizeof(word));
    const __m256i signed_q = _mm256_sign_epi8(_mm256_set1_epi32(word), codes_i8x32);
    const __m256i pairs_i16x16 = _mm256_maddubs_epi16(_mm256_abs_epi8(codes_i8x32), signed_q);
    return _mm256_add_epi32(isum_i32x8, _mm256_madd_epi16(pairs_i16x16, _mm256_set1_epi16(1)));
}

template <int M>
void multiply_tile(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t tile, int32_t token) {
    const uint8_t* codes = args.codes + tile * (args.padded_k / kChunkColumns) * kChunkBytes;
    const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const __m128i shift = _mm_cvtsi32_si128(8 - args.spec->bits);
    __m256 y[M][2];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        y[m][0] = y[m][1] = _mm256_setzero_ps();
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const int32_t chunks = args.act_groups[g].padded_count / kChunkColumns;
        __m256i isum_i32x8[M][2];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            isum_i32x8[m][0] = isum_i32x8[m][1] = _mm256_setzero_si256();
        }
        for (int32_t chunk = 0; chunk < chunks; ++chunk) {
            _mm_prefetch(reinterpret_cast<const char*>(codes + kPrefetch), _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(codes + args.region_stride + kPrefetch), _MM_HINT_T0);
            TMAC_UNROLL
            for (int half = 0; half < 2; ++half) {
                const uint8_t* top = codes + kHalfBytes * half;
                const Codes c = join(top, top + args.region_stride);
                TMAC_UNROLL
                for (int m = 0; m < M; ++m) {
                    const int8_t* eight = q + m * args.act_stride;
                    const __m256i sum = add_products(isum_i32x8[m][half], c.first_i8x32, eight);
                    isum_i32x8[m][half] = add_products(sum, c.second_i8x32, eight + 4);
                }
            }
            codes += kChunkBytes;
            q += kChunkColumns;
        }
        const int64_t row = (tile * args.num_groups + args.act_groups[g].weight_group) * kTileRows;
        TMAC_UNROLL
        for (int half = 0; half < 2; ++half) {
            const GroupTerms<Floats> terms = epilogue.load(row + half * kLanes);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
                const __m256i isum = _mm256_sra_epi32(isum_i32x8[m][half], shift);
                y[m][half] = epilogue.add(terms, isum, args.act_scale[at], args.act_sum[at], y[m][half]);
            }
        }
    }
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        TMAC_UNROLL
        for (int half = 0; half < 2; ++half) {
            store_rows(args.y + (token + m) * args.ldy, tile * kTileRows + half * kLanes, args.row_end, y[m][half]);
        }
    }
}

void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>(1 << (args.spec->bits - 1)));
    for (int64_t tile = args.row_begin / kTileRows; tile * kTileRows < args.row_end; ++tile) {
        for_each_token_block<4, 1>(args.m,
                                   [&]<int M>(int32_t token) { multiply_tile<M>(args, epilogue, tile, token); });
    }
}

constexpr uint8_t kGroup = 1U << static_cast<int>(Activation::group);
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c;

#define TMAC_ROW(suffix, bits)                                                                      \
    Kernel {                                                                                        \
        "qgemm_mad_" suffix "_avx2", bits, Codebook::uniform, kGroup, Method::mad, Layout::nibbles, \
            bit_of(Layout::nibbles), kFeatures, qgemm, act_quant                                    \
    }

constinit const Kernel rows[] = {TMAC_ROW("w5", 5), TMAC_ROW("w6", 6), TMAC_ROW("w7", 7), TMAC_ROW("w8", 8)};

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx2
