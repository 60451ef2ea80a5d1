#pragma once

#include "core/cpu_features.h"
#include "core/trit_byte.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/mad_panel.h"
#include "kernels/avx2/mad_small.h"

// Ternary weights at 1.6 bits times int8 activations, exact in int32: the templates of the class `mad` over codes that
// are looked up, five from a byte (core/trit_byte.h).
//
// 32 bytes of Layout::trits are 20 columns of 8 rows: byte 4r + i of row r has the columns i, i + 4, ..., i + 16. So a
// code vector has four neighbouring columns of each row, and activations stay in their natural order.
//
//     low   = byte & 15, high = byte >> 4            vpand, vpsrlw, vpand
//     pairs = low[low] + high[high], saturating      two vpshufb, vpaddusb
//     codes 0 to 3: even and odd of its nibbles      vpand, vpsrlw, vpand; four vpshufb
//     code 4 = fifth[high] | byte - 0xf0             vpshufb, vpsubusb, vpor
//
// are 16 instructions for 160 codes.

namespace tmac::avx2 {
namespace {

constinit const TritNibbleTables kTritTables = make_trit_nibble_tables();

TMAC_ALWAYS_INLINE __m256i table_of(const uint8_t (&entries)[16]) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(entries)));
}
TMAC_ALWAYS_INLINE __m256i high_nibbles(__m256i bytes) { return masked(_mm256_srli_epi16(bytes, 4), 0x0f); }

template <class Dot>
struct Trits {
    static constexpr int kVectors = kTritsInByte;
    static constexpr int kColumns = 4 * kTritsInByte;
    static constexpr int kChunkBytes = 256;
    static constexpr int kLastBytes = kChunkBytes;
    static constexpr int kTileRows = 64;
    static constexpr int kTogether = 1;
    static constexpr bool kShifted = false;
    static constexpr bool kInTwos = false;
    static constexpr int kDigits = 1;
    static constexpr int kLargest = 2;       ///< a forged byte may say 15, and its sum wrap
    static constexpr int kLargestSmall = 3;  ///< tokens up to which a panel does not pay
    static constexpr int kPrefetch = 4096;   ///< bytes; half of a tile's rows are no stream that the CPU sees by itself

    __m256i pairs[2];  ///< of codes 0 and 1, and of codes 2 and 3
    __m256i fifth;

    TMAC_ALWAYS_INLINE Trits(const uint8_t* codes, const Regions& /*regions*/) {
        TMAC_PREFETCH(codes + kPrefetch);
        const __m256i bytes = load_bytes(codes);
        const __m256i high = high_nibbles(bytes);
        const __m256i sum = _mm256_adds_epu8(_mm256_shuffle_epi8(table_of(kTritTables.low), masked(bytes, 0x0f)),
                                             _mm256_shuffle_epi8(table_of(kTritTables.high), high));
        pairs[0] = masked(sum, 0x0f);
        pairs[1] = high_nibbles(sum);
        fifth = _mm256_or_si256(_mm256_shuffle_epi8(table_of(kTritTables.fifth), high),
                                _mm256_subs_epu8(bytes, bytes_of(0xf0)));
    }

    template <int V, int Digit>
    TMAC_ALWAYS_INLINE __m256i code() const {
        if constexpr (V == kTritsInByte - 1) {
            return fifth;
        } else {
            return _mm256_shuffle_epi8(table_of(V % 2 == 0 ? kTritTables.even : kTritTables.odd), pairs[V / 2]);
        }
    }
};

/// The five tables leave no room for the codes of several rows.
template <class Dot>
inline constexpr bool kRowsInTurn<Trits<Dot>> = true;

template <class Dot>
void qgemm_trits(const QgemmArgs& args) {
    args.m <= Trits<Dot>::kLargestSmall ? qgemm_small<Dot, Trits<Dot>>(args) : qgemm_panel<Dot, Trits<Dot>>(args);
}

template <class Dot>
constexpr Kernel trit_row(const char* name, uint32_t features) {
    return {name,
            2,
            Codebook::ternary,
            kBoth,
            Method::trit,
            Layout::trits,
            bit_of(Layout::trits),
            features,
            qgemm_trits<Dot>,
            act_quant,
            kTokenBlock};
}

}  // namespace
}  // namespace tmac::avx2
