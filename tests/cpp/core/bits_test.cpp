#include "core/bits.h"

#include "catch.h"

using namespace tmac;

TEST_CASE("spread_bits puts bit i into byte i, and gather_bits takes it back", "[bits]") {
    for (int value = 0; value < 256; ++value) {
        uint64_t expected = 0;
        for (int i = 0; i < 8; ++i) {
            expected |= static_cast<uint64_t>((value >> i) & 1) << (8 * i);
        }
        CHECK(spread_bits(static_cast<uint8_t>(value)) == expected);
        CHECK(gather_bits(expected) == value);
    }
}
