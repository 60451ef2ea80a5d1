#pragma once

#include <cstdint>

#include "core/portable.h"

// Permutations of bits in 64-bit words, made of exchanges: two fields that are a fixed distance apart change places,
// all pairs of a word at once. Always inlined, like bits.h.

namespace tmac {

/// Exchanges the fields of `mask` with those `distance` bits above them.
static TMAC_ALWAYS_INLINE constexpr uint64_t exchange(uint64_t word, int distance, uint64_t mask) {
    const uint64_t change = (word ^ (word >> distance)) & mask;
    return word ^ change ^ (change << distance);
}

/// Exchanges the fields of `mask` in `high` with those `distance` bits above them in `low`: the 2 x 2 matrices of
/// fields that the two words hold are transposed.
static TMAC_ALWAYS_INLINE constexpr void exchange(uint64_t& low, uint64_t& high, int distance, uint64_t mask) {
    const uint64_t change = ((low >> distance) ^ high) & mask;
    high ^= change;
    low ^= change << distance;
}

/// Of each 32 bits, nibbles 0 1 2 3 4 5 6 7 in the order 0 4 1 5 2 6 3 7.
static TMAC_ALWAYS_INLINE constexpr uint64_t shuffle_nibbles(uint64_t word) {
    word = exchange(word, 8, 0x0000ff000000ff00ULL);
    return exchange(word, 4, 0x00f000f000f000f0ULL);
}

/// Of each 16 bits, bit 4 m + j becomes bit 4 j + m.
static TMAC_ALWAYS_INLINE constexpr uint64_t transpose_nibbles(uint64_t word) {
    word = exchange(word, 3, 0x0a0a0a0a0a0a0a0aULL);
    return exchange(word, 6, 0x00cc00cc00cc00ccULL);
}

/// Nibble j of 32 bits becomes the low half of byte j.
static TMAC_ALWAYS_INLINE constexpr uint64_t spread_nibbles(uint32_t nibbles) {
    uint64_t word = nibbles;
    word = (word | word << 16) & 0x0000ffff0000ffffULL;
    word = (word | word << 8) & 0x00ff00ff00ff00ffULL;
    return (word | word << 4) & 0x0f0f0f0f0f0f0f0fULL;
}

/// Four planes of 64 columns -> nibbles: byte j of 32 bits = column j | column j + 4 << 4 of eight columns, whose
/// numbers are 0 and 4 in `bit0`, 1 and 5 in `bit1`, 2 and 6, 3 and 7.
static TMAC_ALWAYS_INLINE constexpr void planes_to_nibbles(uint64_t& bit3, uint64_t& bit2, uint64_t& bit1,
                                                           uint64_t& bit0) {
    // The nibbles i of the four words are a 4 x 4 matrix. Transposed, they are the codes of the columns 4 i to 4 i + 3,
    // and so the bytes c of the words are the bytes of the columns from 8 c on.
    exchange(bit0, bit2, 2, 0x3333333333333333ULL);
    exchange(bit1, bit3, 2, 0x3333333333333333ULL);
    exchange(bit0, bit1, 1, 0x5555555555555555ULL);
    exchange(bit2, bit3, 1, 0x5555555555555555ULL);
    exchange(bit0, bit1, 8, 0x00ff00ff00ff00ffULL);
    exchange(bit2, bit3, 8, 0x00ff00ff00ff00ffULL);
    exchange(bit0, bit2, 16, 0x0000ffff0000ffffULL);
    exchange(bit1, bit3, 16, 0x0000ffff0000ffffULL);
}

/// The inverse: the same exchanges, the last one first.
static TMAC_ALWAYS_INLINE constexpr void nibbles_to_planes(uint64_t& bit3, uint64_t& bit2, uint64_t& bit1,
                                                           uint64_t& bit0) {
    exchange(bit1, bit3, 16, 0x0000ffff0000ffffULL);
    exchange(bit0, bit2, 16, 0x0000ffff0000ffffULL);
    exchange(bit2, bit3, 8, 0x00ff00ff00ff00ffULL);
    exchange(bit0, bit1, 8, 0x00ff00ff00ff00ffULL);
    exchange(bit2, bit3, 1, 0x5555555555555555ULL);
    exchange(bit0, bit1, 1, 0x5555555555555555ULL);
    exchange(bit1, bit3, 2, 0x3333333333333333ULL);
    exchange(bit0, bit2, 2, 0x3333333333333333ULL);
}

}  // namespace tmac
