#pragma once

#include <cstdint>

// Five ternary codes in a byte of Layout::trits. 3^5 = 243 of 256 values are enough whatever stands for what, so the
// byte is made for tables of 64 entries (vpermb, tbl) rather than for division: with
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

}  // namespace tmac
