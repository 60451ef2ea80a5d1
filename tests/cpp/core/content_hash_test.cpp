#include "core/content_hash.h"

#include <set>
#include <vector>

#include "catch.h"
#include "random.h"

using namespace tmac;

namespace {

uint64_t hash_of(const std::vector<uint8_t>& bytes) {
    ContentHash hash;
    hash.update(bytes.data(), bytes.size());
    return hash.digest();
}

std::vector<uint8_t> some_bytes(size_t count) {
    Random random(3);
    std::vector<uint8_t> bytes(count);
    for (uint8_t& byte : bytes) {
        byte = static_cast<uint8_t>(random.below(256));
    }
    return bytes;
}

}  // namespace

TEST_CASE("ContentHash does not depend on cuts") {
    const std::vector<uint8_t> bytes = some_bytes(1000);
    for (const size_t step : {1, 7, 63, 64, 65, 128, 999}) {
        ContentHash hash;
        for (size_t begin = 0; begin < bytes.size(); begin += step) {
            hash.update(bytes.data() + begin, std::min(step, bytes.size() - begin));
        }
        CHECK(hash.digest() == hash_of(bytes));
    }
}

TEST_CASE("ContentHash sees every bit and the length") {
    std::vector<uint8_t> bytes = some_bytes(300);
    std::set<uint64_t> seen{hash_of(bytes), hash_of({}), hash_of({0}), hash_of({0, 0})};
    for (uint8_t& byte : bytes) {
        for (int bit = 0; bit < 8; ++bit) {
            byte = static_cast<uint8_t>(byte ^ (1 << bit));
            seen.insert(hash_of(bytes));
            byte = static_cast<uint8_t>(byte ^ (1 << bit));
        }
    }
    CHECK(seen.size() == 4 + 8 * bytes.size());
}
