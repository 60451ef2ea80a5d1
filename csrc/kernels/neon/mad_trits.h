#pragma once

#include "core/trit_byte.h"
#include "kernels/neon/mad_codes.h"

namespace tmac::neon {
namespace {

constinit const TritNibbleTables kTritTables = make_trit_nibble_tables();

/// Five ternary codes in a byte (core/trit_byte.h): 16 bytes of Layout::trits are 20 columns of 4 rows. Byte 4r + i of
/// row r has the columns i, i + 4, ..., i + 16, so that activations stay in their natural order. 14 instructions unpack
/// 80 codes, as the kernels of AVX2 do.
struct Trits {
    static constexpr int kBits = 2;
    static constexpr int kVectors = kTritsInByte;
    static constexpr int kColumns = 4 * kTritsInByte;
    static constexpr int kChunkBytes = 256;
    static constexpr int kLastBytes = kChunkBytes;
    static constexpr int kTileRows = 64;
    static constexpr int kRegions = 1;
    static constexpr int kSign = 1;
    static constexpr int kShift = 0;
    static constexpr int kOffset = 2;
    static constexpr bool kSmall = true;  ///< even the 15 of a forged byte
    static constexpr bool kUnsigned = false;

    uint8x16_t pairs[2];  ///< of codes 0 and 1, and of codes 2 and 3
    uint8x16_t fifth;

    TMAC_ALWAYS_INLINE Trits(const uint8_t* codes, const Regions& /*regions*/) {
        const uint8x16_t bytes = vld1q_u8(codes);
        const uint8x16_t high = vshrq_n_u8(bytes, 4);
        const uint8x16_t sum = vqaddq_u8(vqtbl1q_u8(vld1q_u8(kTritTables.low), vandq_u8(bytes, mask_of(0x0f))),
                                         vqtbl1q_u8(vld1q_u8(kTritTables.high), high));
        pairs[0] = vandq_u8(sum, mask_of(0x0f));
        pairs[1] = vshrq_n_u8(sum, 4);
        fifth = vorrq_u8(vqtbl1q_u8(vld1q_u8(kTritTables.fifth), high), vqsubq_u8(bytes, mask_of(0xf0)));
    }

    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t code() const {
        if constexpr (V == kVectors - 1) {
            return vreinterpretq_s8_u8(fifth);
        } else {
            const uint8x16_t table = vld1q_u8(V % 2 == 0 ? kTritTables.even : kTritTables.odd);
            return vreinterpretq_s8_u8(vqtbl1q_u8(table, pairs[V / 2]));
        }
    }
    static constexpr bool kScaled = false;
    template <int V>
    static constexpr int kScale = 0;
    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t scaled() const {
        return code<V>();
    }
};

}  // namespace
}  // namespace tmac::neon
