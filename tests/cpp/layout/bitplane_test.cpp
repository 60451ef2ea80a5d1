#include "layout/bitplane.h"

#include <vector>

#include "catch.h"
#include "random.h"

using namespace tmac;

TEST_CASE("plane 0 is the most significant bit, bit i of byte j is column 8j + i", "[bitplane]") {
    const std::vector<uint8_t> codes = {4, 2, 1, 0, 7, 0, 0, 3, 5};
    std::vector<uint8_t> planes(3 * 2);
    codes_to_planes(codes.data(), 9, 3, planes.data(), 2);
    CHECK(planes == std::vector<uint8_t>{0b00010001, 1, 0b10010010, 0, 0b10010100, 1});
}

TEST_CASE("planes and codes invert one another", "[bitplane]") {
    Random random(1);
    for (int32_t bits = 1; bits <= 8; ++bits) {
        for (const int64_t k : {1, 7, 8, 9, 63, 64, 65, 576}) {
            const std::vector<uint8_t> codes = random.codes(k, 1U << bits);
            const int64_t row_bytes = (k + 7) / 8;
            std::vector<uint8_t> planes(static_cast<size_t>(bits * row_bytes));
            std::vector<uint8_t> back(codes.size(), 99);
            codes_to_planes(codes.data(), k, bits, planes.data(), row_bytes);
            planes_to_codes(planes.data(), row_bytes, k, bits, back.data());
            CAPTURE(bits, k);
            CHECK(back == codes);
            for (int32_t plane = 0; k % 8 != 0 && plane < bits; ++plane) {  // nothing past the last column
                CHECK((planes[static_cast<size_t>((plane + 1) * row_bytes - 1)] >> (k % 8)) == 0);
            }
        }
    }
}
