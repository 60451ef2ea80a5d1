#pragma once

#include <cstdint>

// Five ternary codes in a byte of Layout::trits. 3^5 = 243 of 256 values are enough whatever stands for what, so the
// byte is made for tables of 64 entries (vpermb), or of 16 for each nibble, rather than for division: with
//
//     s = code0 + 3 code1 + 9 code2 + 27 code3, 0..80
//
//     bits   7 6   5 4 3 2 1 0
//            code4 s                   s < 64
//            1 1   code4 s - 64        64 <= s < 80
//            1 1   1 1 0 0 code4       s = 80
//
// The low six bits look four codes up, in one table or, where both top bits are set, in another; and code4 stands in
// the top bits, or in those of a third table. The 13 bytes that mean nothing decode to codes of at most 3.
//
// Instruction sets that look up 16 entries at a time take it by its nibbles, because code4 and s / 16 are the high
// one's (code4 is the low one's only where that is 15). Of s = a + 9 b, the byte (a + 7) + 16 (b + 7) is the sum of
// what the nibbles give on their own: an `a` past 8 is an `a + 7` past 15, which carries into b and leaves a. So its
// nibbles stand for 0..8, with 7..15 or 0..6, and s = 80 is 255, where a saturating sum stays.

namespace tmac {

inline constexpr int32_t kTritsInByte = 5;

/// A byte's codes, code j in bits 2j and 2j + 1.
constexpr uint32_t codes_of_trit_byte(uint32_t byte) {
    const uint32_t low = byte & 63U;
    const bool plain = byte < 0xc0U;
    uint32_t s = plain ? low : low < 48 ? 64 + (low & 15U) : 80;
    const uint32_t fifth = plain ? byte >> 6 : low < 48 ? low >> 4 : low & 3U;
    uint32_t codes = fifth << 8;
    for (int j = 0; j < 4; ++j) {
        codes |= s % 3 << (2 * j);
        s /= 3;
    }
    return codes;
}

/// The inverse, for s and code4.
constexpr uint32_t trit_byte_of(uint32_t s, uint32_t fifth) {
    return s < 64 ? fifth << 6 | s : s < 80 ? 0xc0U | fifth << 4 | (s - 64) : 0xf0U | fifth;
}

/// The three tables: codes 0 to 3 in two bits each, for bytes below and from 0xc0 on, and code4 << 6 for the latter.
struct TritTables {
    alignas(64) uint8_t plain[64];
    alignas(64) uint8_t rest[64];
    alignas(64) uint8_t fifth[64];
};

consteval TritTables make_trit_tables() {
    TritTables tables{};
    for (uint32_t low = 0; low < 64; ++low) {
        const uint32_t rest = codes_of_trit_byte(0xc0U | low);
        tables.plain[low] = static_cast<uint8_t>(codes_of_trit_byte(low) & 0xffU);
        tables.rest[low] = static_cast<uint8_t>(rest & 0xffU);
        tables.fifth[low] = static_cast<uint8_t>(rest >> 8 << 6);
    }
    return tables;
}

/// Tables of 16 entries: of the nibbles of a byte, and of those of the sum of `low` and `high`.
struct TritNibbleTables {
    alignas(16) uint8_t low[16];
    alignas(16) uint8_t high[16];
    alignas(16) uint8_t fifth[16];  ///< code4 of a high nibble, 0 of the 15: there it is the low nibble
    alignas(16) uint8_t even[16];   ///< code0 of a low nibble of the sum, code2 of a high one
    alignas(16) uint8_t odd[16];    ///< code1 and code3
};

consteval TritNibbleTables make_trit_nibble_tables() {
    TritNibbleTables tables{};
    for (uint32_t nibble = 0; nibble < 16; ++nibble) {
        const uint32_t s = nibble < 12 ? nibble % 4 * 16 : 64;
        const uint32_t pair = nibble < 7 ? nibble : nibble - 7;
        tables.low[nibble] = static_cast<uint8_t>(nibble % 9 + nibble / 9 * 16);
        tables.high[nibble] = static_cast<uint8_t>(nibble == 15 ? 255 : s % 9 + 7 + (s / 9 + 7) * 16);
        tables.fifth[nibble] = static_cast<uint8_t>(nibble < 12 ? nibble / 4 : nibble % 3 * (nibble < 15));
        tables.even[nibble] = static_cast<uint8_t>(pair % 3);
        tables.odd[nibble] = static_cast<uint8_t>(pair / 3);
    }
    return tables;
}

}  // namespace tmac
