#include "core/huge_buffer.h"

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "catch.h"

using namespace tmac;

TEST_CASE("a buffer is zero, aligned and writable to its last byte", "[huge_buffer]") {
    for (const size_t size : {size_t{1}, size_t{63}, size_t{4096}, size_t{65536}, size_t{2} << 20,
                              (size_t{4} << 20) + 17, (size_t{16} << 20) + 17}) {
        HugeBuffer buffer(size);
        REQUIRE(buffer.size() == size);
        CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
        CHECK(std::all_of(buffer.data(), buffer.data() + size, [](uint8_t byte) { return byte == 0; }));
        std::fill_n(buffer.data(), size, uint8_t{7});
        CHECK(buffer.data()[size - 1] == 7);
    }
}

TEST_CASE("moving a buffer moves its memory", "[huge_buffer]") {
    HugeBuffer first(100);
    uint8_t* const memory = first.data();
    memory[5] = 9;
    HugeBuffer second(std::move(first));
    CHECK(second.data() == memory);
    HugeBuffer third;
    third = std::move(second);
    CHECK(third.size() == 100);
    CHECK(third.data()[5] == 9);
}

TEST_CASE("an empty buffer has no bytes", "[huge_buffer]") { CHECK(HugeBuffer().size() == 0); }

TEST_CASE("buffers that share pages are zero, apart, and may go in any order", "[huge_buffer]") {
    for (int round = 0; round < 3; ++round) {
        std::vector<HugeBuffer> buffers;
        for (size_t i = 0; i < 60; ++i) {  // 75 MB: several slabs
            buffers.emplace_back(size_t{1250000} + 4097 * i);
            CHECK(std::all_of(buffers.back().data(), buffers.back().data() + buffers.back().size(),
                              [](uint8_t byte) { return byte == 0; }));
            std::fill_n(buffers.back().data(), buffers.back().size(), static_cast<uint8_t>(i + 1));
        }
        for (const size_t gone : {5U, 6U, 0U, 59U, 30U}) {
            buffers[gone] = HugeBuffer();
        }
        for (size_t i = 0; i < buffers.size(); ++i) {
            const auto mine = [i](uint8_t byte) { return byte == i + 1; };
            CHECK(std::all_of(buffers[i].data(), buffers[i].data() + buffers[i].size(), mine));
        }
    }
}
