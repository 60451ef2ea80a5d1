#include "layout/trit.h"

#include <vector>

#include "catch.h"
#include "layout/bitplane.h"
#include "random.h"

using namespace tmac;

TEST_CASE("five trits in a byte, padding is code 1", "[trit]") {
    const std::vector<uint8_t> codes = {0, 1, 2, 0, 1, 2};
    std::vector<uint8_t> trits(2);
    codes_to_trits(codes.data(), 6, trits.data());
    CHECK(trits == std::vector<uint8_t>{0 + 3 + 18 + 0 + 81, 2 + 3 + 9 + 27 + 81});
}

TEST_CASE("trits and codes invert one another", "[trit]") {
    Random random(2);
    for (const int64_t k : {1, 4, 5, 6, 64, 576}) {
        const std::vector<uint8_t> codes = random.codes(k, 3);
        std::vector<uint8_t> trits(static_cast<size_t>((k + 4) / 5));
        std::vector<uint8_t> back(codes.size(), 99);
        codes_to_trits(codes.data(), k, trits.data());
        REQUIRE(trits_to_codes(trits.data(), k, back.data()));
        CHECK(back == codes);
    }
}

TEST_CASE("trits to planes is trits to codes to planes", "[trit]") {
    Random random(3);
    for (const int64_t k : {1, 4, 5, 6, 39, 40, 41, 64, 81, 576}) {
        const std::vector<uint8_t> codes = random.codes(k, 3);
        std::vector<uint8_t> trits(static_cast<size_t>((k + 4) / 5));
        codes_to_trits(codes.data(), k, trits.data());
        const int64_t row_bytes = (k + 7) / 8;
        std::vector<uint8_t> want(static_cast<size_t>(2 * row_bytes));
        std::vector<uint8_t> planes(want.size(), 99);
        codes_to_planes(codes.data(), k, 2, want.data(), row_bytes);
        CHECK(trits_to_planes(trits.data(), k, planes.data(), planes.data() + row_bytes));
        CAPTURE(k);
        CHECK(planes == want);
        trits.back() = 243;
        CHECK(!trits_to_planes(trits.data(), k, planes.data(), planes.data() + row_bytes));
    }
}

TEST_CASE("a byte above 242 is no five trits", "[trit]") {
    std::vector<uint8_t> codes(5);
    for (int byte = 0; byte < 256; ++byte) {
        const auto trits = static_cast<uint8_t>(byte);
        CHECK(trits_to_codes(&trits, 5, codes.data()) == (byte <= 242));
    }
}
