#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "catch.h"
#include "random.h"
#include "runtime/cache_model.h"
#include "runtime/kv_cache.h"

using namespace tmac;

namespace {

const std::vector<CacheLayer> kLayers = {{2, 8, 0}, {1, 20, 70}};

constexpr size_t kHeader = 24 + 2 * 16 + 2 * 8;
constexpr size_t kLengthAt = 16;

void put_i64(std::vector<uint8_t>& bytes, size_t at, int64_t value) { std::memcpy(bytes.data() + at, &value, 8); }

int64_t restore(KvCache& cache, const std::vector<uint8_t>& bytes) {
    return cache.restore(bytes.data(), static_cast<int64_t>(bytes.size()));
}

}  // namespace

TEST_CASE("a restored sequence goes on in another cache as the first one does") {
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
        for (const int64_t length : {0, 1, 63, 64, 65, 300}) {
            KvCache cache(type, kLayers);
            std::vector<uint32_t> tokens;
            const int64_t id = cache.create();
            append(cache, id, tokens, length, 7);
            cache.reserve(id, 100);
            write_token(cache, id, length, 99);  // written, never committed: not saved
            const std::vector<uint8_t> saved = cache.save(id);
            CHECK(static_cast<int64_t>(saved.size()) == cache.saved_bytes(id));

            KvCache other(type, kLayers);
            other.create();
            const int64_t copy = restore(other, saved);
            REQUIRE(holds_tokens(other, copy, tokens));
            CHECK(other.save(copy) == saved);
            append(other, copy, tokens, 90, 1000);
            CHECK(holds_tokens(other, copy, tokens));
        }
    }
}

TEST_CASE("bytes do not depend on what a sequence's pages held before") {
    KvCache cache(CacheType::f16, kLayers);
    std::vector<uint32_t> tokens;
    const int64_t first = cache.create();
    append(cache, first, tokens, 500, 3);
    CHECK(cache.truncate(first, 470));
    const int64_t second = cache.create();
    std::vector<uint32_t> same;
    for (int64_t i = 0; i < 47; ++i) {
        append(cache, second, same, 10, 3 + 10 * static_cast<uint32_t>(i));
    }
    CHECK(cache.save(first) == cache.save(second));
}

TEST_CASE("saving and restoring go in bounded pieces") {
    KvCache cache(CacheType::f32, {{16, 128, 0}});
    std::vector<uint32_t> tokens;
    const int64_t id = cache.create();
    append(cache, id, tokens, 130, 0);
    std::vector<uint8_t> saved;
    int64_t longest = 0;
    cache.save(id, [&](const uint8_t* data, int64_t size) {
        saved.insert(saved.end(), data, data + size);
        longest = std::max(longest, size);
    });
    CHECK(longest <= kSavePiece);
    CHECK(saved == cache.save(id));
    size_t at = 0;
    longest = 0;
    const int64_t copy = cache.restore(static_cast<int64_t>(saved.size()), [&](uint8_t* to, int64_t size) {
        std::memcpy(to, saved.data() + at, static_cast<size_t>(size));
        at += static_cast<size_t>(size);
        longest = std::max(longest, size);
    });
    CHECK(longest <= kSavePiece);
    CHECK(at == saved.size());
    CHECK(holds_tokens(cache, copy, tokens));
}

TEST_CASE("a reader that fails leaves no sequence behind") {
    KvCache cache(CacheType::f16, kLayers);
    std::vector<uint32_t> tokens;
    const int64_t id = cache.create();
    append(cache, id, tokens, 200, 0);
    const std::vector<uint8_t> saved = cache.save(id);
    const int64_t used = cache.used_bytes();
    for (const size_t limit : {size_t{0}, size_t{30}, kHeader, kHeader + 5000}) {
        size_t at = 0;
        CHECK_THROWS_WITH(cache.restore(static_cast<int64_t>(saved.size()),
                                        [&](uint8_t* to, int64_t size) {
                                            if (at + static_cast<size_t>(size) > limit) {
                                                throw std::runtime_error("the file ends");
                                            }
                                            std::memcpy(to, saved.data() + at, static_cast<size_t>(size));
                                            at += static_cast<size_t>(size);
                                        }),
                          "the file ends");
        CHECK(cache.used_bytes() == used);
        CHECK(cache.num_sequences() == 1);
    }
}

TEST_CASE("bytes of another cache are refused by what differs") {
    KvCache cache(CacheType::f16, kLayers);
    const int64_t id = cache.create();
    cache.reserve(id, 10);
    cache.commit(id, 10);
    const std::vector<uint8_t> saved = cache.save(id);
    KvCache type(CacheType::i8, kLayers);
    CHECK_THROWS_WITH(restore(type, saved), TMAC_CONTAINS("cache type"));
    KvCache fewer(CacheType::f16, {kLayers[0]});
    CHECK_THROWS_WITH(restore(fewer, saved), TMAC_CONTAINS("2 layers, this cache has 1"));
    KvCache heads(CacheType::f16, {{1, 8, 0}, {1, 20, 70}});
    CHECK_THROWS_WITH(restore(heads, saved), TMAC_CONTAINS("layer 0 of a saved sequence has 2 key heads of 8"));
    KvCache window(CacheType::f16, {{2, 8, 0}, {1, 20, 71}});
    CHECK_THROWS_WITH(restore(window, saved), TMAC_CONTAINS("with a window of 70, this cache 1 of 20 with 71"));
    CHECK(window.bytes() == 0);
}

TEST_CASE("hostile bytes are refused before memory is taken") {
    KvCache source(CacheType::f16, kLayers);
    std::vector<uint32_t> tokens;
    const int64_t id = source.create();
    append(source, id, tokens, 300, 0);
    const std::vector<uint8_t> saved = source.save(id);
    REQUIRE(saved.size() > kHeader);

    KvCache cache(CacheType::f16, kLayers);
    for (size_t size = 0; size < saved.size(); size += size < kHeader + 8 ? 1 : 997) {
        const std::vector<uint8_t> part(saved.begin(), saved.begin() + static_cast<int64_t>(size));
        CHECK_THROWS_AS(restore(cache, part), std::invalid_argument);
    }
    std::vector<uint8_t> longer = saved;
    longer.push_back(0);
    CHECK_THROWS_AS(restore(cache, longer), std::invalid_argument);

    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    for (const int64_t value : {int64_t{-1}, -kMost - 1, kMost, kMaxSequenceLength, kMaxSequenceLength + 1, kMost / 64,
                                int64_t{0}, int64_t{257 - 64}}) {
        for (const size_t at : {kLengthAt, kHeader - 16, kHeader - 8}) {
            std::vector<uint8_t> wrong = saved;
            put_i64(wrong, at, value);
            if (wrong != saved) {
                INFO("value " << value << " at " << at);
                CHECK_THROWS_AS(restore(cache, wrong), std::invalid_argument);
            }
        }
    }
    CHECK(cache.bytes() == 0);

    // Every bit of the header: refused, or (a length in the same page) a sequence that works.
    for (size_t bit = 0; bit < kHeader * 8; ++bit) {
        std::vector<uint8_t> wrong = saved;
        wrong[bit / 8] = static_cast<uint8_t>(wrong[bit / 8] ^ (1U << (bit % 8)));
        try {
            const int64_t made = restore(cache, wrong);
            CHECK(bit / 8 == kLengthAt);
            CHECK(cache.save(made).size() == saved.size());
            cache.release(made);
        } catch (const std::invalid_argument&) {
        }
    }
    Random random(3);
    for (int i = 0; i < 1000; ++i) {
        std::vector<uint8_t> noise = saved;
        for (int j = 0; j < 4; ++j) {
            noise[random.below(kHeader)] = static_cast<uint8_t>(random.below(256));
        }
        try {
            cache.release(restore(cache, noise));
        } catch (const std::invalid_argument&) {
        }
    }
    CHECK(cache.used_bytes() == 0);
    CHECK(cache.num_sequences() == 0);
}

TEST_CASE("a saved sequence may not lack a page that its window reaches into") {
    KvCache cache(CacheType::f16, {{1, 16, 70}});
    std::vector<uint32_t> tokens;
    append(cache, cache.create(), tokens, 300, 0);
    const std::vector<uint8_t> saved = cache.save(0);
    const int64_t page = cache.layout(0).head_bytes();
    const int64_t header = 24 + 16 + 8;
    const int64_t first = (300 - 70 + 1 - kRollbackPositions) / kPagePositions;
    REQUIRE(static_cast<int64_t>(saved.size()) == header + (5 - first) * page);
    for (const int64_t missing : {1, 2, 3}) {
        std::vector<uint8_t> shorter = saved;
        put_i64(shorter, static_cast<size_t>(header) - 8, first + missing);
        shorter.erase(shorter.begin() + header, shorter.begin() + header + missing * page);
        if ((first + missing) * kPagePositions <= 300 - 70 + 1) {  // what is left out is only there for rolling back
            CHECK(cache.save(restore(cache, shorter)) == shorter);
        } else {
            CHECK_THROWS_WITH(restore(cache, shorter), TMAC_CONTAINS("starts at page"));
        }
    }
}

TEST_CASE("what bytes hold beyond the positions and beyond head_dim is not taken over") {
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
        KvCache cache(type, {{2, 20, 0}});
        std::vector<uint32_t> tokens;
        append(cache, cache.create(), tokens, 70, 0);
        const std::vector<uint8_t> saved = cache.save(0);
        std::vector<uint8_t> filled = saved;
        std::fill(filled.begin() + 24 + 16 + 8, filled.end(), uint8_t{0x55});
        KvCache other(type, {{2, 20, 0}});
        const int64_t id = restore(other, filled);
        for (int64_t i = 0; i < 70; ++i) {
            write_token(other, id, i, static_cast<uint32_t>(i));
        }
        CHECK(other.save(id) == saved);
    }
}

TEST_CASE("a small file of a long sequence takes little memory") {
    KvCache cache(CacheType::f16, {{1, 16, 1}});
    std::vector<uint8_t> bytes = cache.save(cache.create());
    put_i64(bytes, kLengthAt, kMaxSequenceLength);
    put_i64(bytes, bytes.size() - 8, kMaxSequenceLength / kPagePositions);
    const int64_t id = restore(cache, bytes);
    CHECK(cache.length(id) == kMaxSequenceLength);
    CHECK(cache.bytes() == 0);
    CHECK_THROWS_AS(cache.reserve(id, 1), std::invalid_argument);
}
