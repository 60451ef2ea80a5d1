#include "core/trit_byte.h"

#include <set>

#include "catch.h"

using namespace tmac;

TEST_CASE("five ternary codes have a byte of their own, which gives them back", "[trit_byte]") {
    std::set<uint32_t> bytes;
    for (uint32_t fifth = 0; fifth < 3; ++fifth) {
        for (uint32_t s = 0; s < 81; ++s) {
            const uint32_t byte = trit_byte_of(s, fifth);
            const uint32_t codes = s % 3 | s / 3 % 3 << 2 | s / 9 % 3 << 4 | s / 27 << 6 | fifth << 8;
            CHECK(byte < 256);
            CHECK(bytes.insert(byte).second);
            CHECK(codes_of_trit_byte(byte) == codes);
        }
    }
}

TEST_CASE("the tables give every byte's codes, those without meaning among them", "[trit_byte]") {
    constexpr TritTables kTables = make_trit_tables();
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const bool plain = byte < 0xc0;
        const uint32_t fields = plain ? kTables.plain[byte & 63] : kTables.rest[byte & 63];
        const uint32_t fifth = plain ? byte >> 6 : uint32_t{kTables.fifth[byte & 63]} >> 6;
        CHECK((fields | fifth << 8) == codes_of_trit_byte(byte));
    }
}

TEST_CASE("the tables of nibbles give the codes of every byte that means something", "[trit_byte]") {
    constexpr TritNibbleTables kTables = make_trit_nibble_tables();
    for (uint32_t fifth = 0; fifth < 3; ++fifth) {
        for (uint32_t s = 0; s < 81; ++s) {
            const uint32_t byte = trit_byte_of(s, fifth);
            const uint32_t sum = uint32_t{kTables.low[byte & 15]} + kTables.high[byte >> 4];
            const uint32_t pairs = sum < 255 ? sum : 255;
            CAPTURE(byte, pairs);
            CHECK(kTables.even[pairs & 15] == s % 3);
            CHECK(kTables.odd[pairs & 15] == s / 3 % 3);
            CHECK(kTables.even[pairs >> 4] == s / 9 % 3);
            CHECK(kTables.odd[pairs >> 4] == s / 27);
            CHECK(kTables.fifth[byte >> 4] + (byte < 0xf0 ? 0 : byte - 0xf0) == fifth);
        }
    }
}
