#pragma once

#include <cstdint>

#include "core/portable.h"

// Between the bits of a plane and the bytes of codes, eight columns at a time. Always inlined, like half.h.

namespace tmac {

inline constexpr uint64_t kLowBits = 0x0101010101010101ULL;  ///< bit 0 of every byte

/// Bit i of `byte` becomes byte i (0 or 1) of the result.
static TMAC_ALWAYS_INLINE constexpr uint64_t spread_bits(uint8_t byte) {
    // Byte i keeps bit i only; adding 0x7f carries into its top bit exactly when something was kept.
    const uint64_t kept = (byte * kLowBits) & 0x8040201008040201ULL;
    return ((kept + 0x7f7f7f7f7f7f7f7fULL) >> 7) & kLowBits;
}

/// The inverse, for bytes that are 0 or 1: byte i, at bit 8i, meets the factor 2^(56 - 7i) and lands on bit 56 + i; no
/// two of the 64 partial products share a bit, so nothing carries.
static TMAC_ALWAYS_INLINE constexpr uint8_t gather_bits(uint64_t bytes) {
    return static_cast<uint8_t>((bytes * 0x0102040810204080ULL) >> 56);
}

}  // namespace tmac
