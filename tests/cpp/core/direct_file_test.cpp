#include "core/direct_file.h"

#include <algorithm>

#include "catch.h"
#include "core/huge_buffer.h"
#include "stream_file.h"

using namespace tmac;

namespace {

constexpr int64_t kBlock = DirectFile::kBlock;

/// Memory at a multiple of a block.
struct Blocks {
    explicit Blocks(int64_t count) : memory(static_cast<size_t>((count + 1) * kBlock)) {
        data = memory.data() + (kBlock - reinterpret_cast<intptr_t>(memory.data()) % kBlock) % kBlock;
    }

    HugeBuffer memory;
    uint8_t* data;
};

}  // namespace

TEST_CASE("DirectFile reads blocks anywhere") {
    const StreamFile file(9);
    const DirectFile direct(file.path());
    CHECK(direct.state().size == 9 * kBlock);
    Blocks blocks(9);
    for (int64_t begin = 0; begin < 9; ++begin) {
        for (int64_t end = begin + 1; end <= 9; ++end) {
            direct.read(begin * kBlock, (end - begin) * kBlock, blocks.data);
            CHECK(std::equal(file.bytes.begin() + begin * kBlock, file.bytes.begin() + end * kBlock, blocks.data));
        }
    }
}

TEST_CASE("DirectFile says what is wrong") {
    const StreamFile file(2);
    const DirectFile direct(file.path());
    Blocks blocks(3);
    CHECK_THROWS_WITH(direct.read(kBlock, 2 * kBlock, blocks.data),
                      TMAC_CONTAINS(file.path()) && TMAC_CONTAINS("shorter"));
    CHECK_THROWS_AS(DirectFile(file.path() + ".missing"), std::runtime_error);
    const DirectFile::State before = direct.state();
    std::filesystem::resize_file(file.path(), kBlock);
    CHECK(direct.state() != before);
    CHECK_THROWS_AS(direct.read(kBlock, kBlock, blocks.data), std::runtime_error);
}
