#include "runtime/kv_cache.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <vector>

#include "catch.h"
#include "random.h"
#include "runtime/cache_model.h"

using namespace tmac;

namespace {

const std::vector<CacheLayer> kPlain = {{2, 8, 0}, {1, 20, 0}};
const std::vector<CacheLayer> kWindows = {{2, 8, 0}, {1, 20, 70}, {1, 16, 0}, {2, 5, 70}, {1, 4, 130}};

/// Distinct pages of a layer that live sequences hold.
int64_t distinct_pages(KvCache& cache, const std::map<int64_t, std::vector<uint32_t>>& live, int32_t layer) {
    std::set<const uint8_t*> pages;
    for (const auto& entry : live) {
        const uint8_t* const* table = cache.pages(entry.first, layer);
        pages.insert(table, table + cache.num_pages(entry.first));
    }
    pages.erase(nullptr);
    return static_cast<int64_t>(pages.size());
}

/// The first page that a sequence may not have dropped.
int64_t first_page(int64_t length, int64_t window) {
    const int64_t first = window == 0 ? 0 : length - window + 1 - kRollbackPositions;
    return std::max<int64_t>(first, 0) / kPagePositions;
}

/// The cache beside lists of tokens: one operation after the other on both.
class Shadow {
public:
    Shadow(CacheType type, uint32_t seed) : cache_(type, kWindows), random_(seed) {}

    void step() {
        if (live_.size() < 2 || (live_.size() < 7 && random_.below(8) == 0)) {
            const int64_t id = cache_.create();
            REQUIRE(live_.emplace(id, std::vector<uint32_t>()).second);
            return;
        }
        auto chosen = live_.begin();
        std::advance(chosen, random_.below(static_cast<uint32_t>(live_.size())));
        const int64_t id = chosen->first;
        std::vector<uint32_t>& tokens = chosen->second;
        switch (random_.below(8)) {
            case 0:
            case 1:
                append(cache_, id, tokens, random_.below(random_.below(4) == 0 ? 300 : 20), next_token());
                break;
            case 2:
                grow_partly(id, tokens);
                break;
            case 3:
                keep(id, tokens);
                break;
            case 4:
                cut(id, tokens);
                break;
            case 5:
                fork(id, tokens);
                break;
            case 6:
                copy(id, tokens);
                break;
            default:
                if (random_.below(3) == 0) {
                    cache_.release(id);
                    live_.erase(id);
                }
                cache_.trim();
        }
    }

    void check() {
        for (const auto& entry : live_) {
            REQUIRE(holds_tokens(cache_, entry.first, entry.second));
            for (int32_t layer = 0; layer < static_cast<int32_t>(kWindows.size()); ++layer) {
                const int64_t window = kWindows[static_cast<size_t>(layer)].window;
                const int64_t longest = std::max(longest_[entry.first], cache_.length(entry.first));
                const uint8_t* const* table = cache_.pages(entry.first, layer);
                for (int64_t i = 0; i < cache_.num_pages(entry.first); ++i) {
                    REQUIRE((table[i] == nullptr) == (i < first_page(longest, window)));
                }
            }
        }
        int64_t used = 0;
        for (const int32_t layer : {0, 1, 2, 3, 4}) {
            used += distinct_pages(cache_, live_, layer) * kWindows[static_cast<size_t>(layer)].kv_heads *
                    cache_.layout(layer).head_bytes();
        }
        REQUIRE(cache_.used_bytes() == used);
        REQUIRE(cache_.bytes() >= used);
        REQUIRE(cache_.held_positions() == distinct_pages(cache_, live_, 0) * kPagePositions);
        REQUIRE(cache_.num_sequences() == static_cast<int64_t>(live_.size()));
    }

    int cuts_refused = 0;
    int cuts_made = 0;

private:
    uint32_t next_token() { return tokens_ += 1000; }

    /// Reserves more than it commits, and what it wrote beyond is gone.
    void grow_partly(int64_t id, std::vector<uint32_t>& tokens) {
        const int64_t count = random_.below(150);
        const int64_t committed = random_.below(static_cast<uint32_t>(count) + 1);
        cache_.reserve(id, count);
        const uint32_t first = next_token();
        for (int64_t i = 0; i < count; ++i) {
            write_token(cache_, id, cache_.length(id) + i, first + static_cast<uint32_t>(i));
        }
        for (int64_t i = 0; i < committed; ++i) {
            tokens.push_back(first + static_cast<uint32_t>(i));
        }
        cache_.commit(id, committed);
    }

    void keep(int64_t id, std::vector<uint32_t>& tokens) {
        const int64_t count = random_.below(70) + 1;
        cache_.reserve(id, count);
        const uint32_t first = next_token();
        std::vector<int64_t> slots;
        for (int64_t i = 0; i < count; ++i) {
            write_token(cache_, id, cache_.length(id) + i, first + static_cast<uint32_t>(i));
            if (random_.below(3) == 0) {
                slots.push_back(i);
                tokens.push_back(first + static_cast<uint32_t>(i));
            }
        }
        cache_.keep(id, slots);
    }

    int64_t some_length(const std::vector<uint32_t>& tokens) {
        const auto length = static_cast<uint32_t>(tokens.size());
        return random_.below(2) == 0 ? random_.below(length + 1) : length - random_.below(std::min(length, 70U) + 1);
    }

    void cut(int64_t id, std::vector<uint32_t>& tokens) {
        const int64_t length = some_length(tokens);
        const bool held = cache_.holds(id, length);
        note_length(id);
        REQUIRE((held || longest_[id] - length > kRollbackPositions));
        REQUIRE(cache_.truncate(id, length) == held);
        if (held) {
            tokens.resize(static_cast<size_t>(length));
            longest_[id] = length == 0 ? 0 : longest_[id];
        }
        ++(held ? cuts_made : cuts_refused);
    }

    void fork(int64_t id, const std::vector<uint32_t>& tokens) {
        const int64_t length = some_length(tokens);
        if (live_.size() >= 8) {
            return;
        }
        if (!cache_.holds(id, length)) {
            REQUIRE_THROWS_AS(cache_.fork(id, length), std::invalid_argument);
            return;
        }
        const int64_t before = cache_.used_bytes();
        note_length(id);
        const int64_t made = cache_.fork(id, length);
        longest_[made] = length == 0 ? 0 : longest_[id];
        REQUIRE(cache_.used_bytes() == before);
        REQUIRE(live_.emplace(made, std::vector<uint32_t>(tokens.begin(), tokens.begin() + length)).second);
    }

    void copy(int64_t id, const std::vector<uint32_t>& tokens) {
        if (live_.size() >= 8) {
            return;
        }
        const std::vector<uint8_t> saved = cache_.save(id);
        REQUIRE(static_cast<int64_t>(saved.size()) == cache_.saved_bytes(id));
        note_length(id);
        const int64_t made = cache_.restore(saved.data(), static_cast<int64_t>(saved.size()));
        longest_[made] = longest_[id];
        REQUIRE(cache_.save(made) == saved);
        REQUIRE(live_.emplace(made, tokens).second);
    }

    /// What a window has dropped goes by the longest that a sequence, or the one that it comes from, has been.
    void note_length(int64_t id) { longest_[id] = std::max(longest_[id], cache_.length(id)); }

    KvCache cache_;
    Random random_;
    std::map<int64_t, std::vector<uint32_t>> live_;
    std::map<int64_t, int64_t> longest_;
    uint32_t tokens_ = 0;
};

}  // namespace

TEST_CASE("after any operations every sequence holds its own tokens") {
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
        Shadow shadow(type, 5 + static_cast<uint32_t>(type));
        for (int i = 0; i < 700; ++i) {
            shadow.step();
            if (i % 5 == 0) {
                shadow.check();
            }
        }
        shadow.check();
        CHECK(shadow.cuts_made > 20);
        CHECK(shadow.cuts_refused > 5);
    }
}

TEST_CASE("a fork shares pages until one of the two writes") {
    KvCache cache(CacheType::f16, kPlain);
    std::vector<uint32_t> tokens;
    const int64_t parent = cache.create();
    append(cache, parent, tokens, 150, 0);
    const int64_t bytes = cache.used_bytes();
    const int64_t child = cache.fork(parent, 100);
    const int64_t twin = cache.fork(parent, 150);
    CHECK(cache.used_bytes() == bytes);
    CHECK(cache.num_pages(child) == 2);
    CHECK(cache.pages(child, 1)[1] == cache.pages(parent, 1)[1]);
    std::vector<uint32_t> child_tokens(tokens.begin(), tokens.begin() + 100);
    append(cache, child, child_tokens, 1, 500);
    CHECK(cache.pages(child, 1)[0] == cache.pages(parent, 1)[0]);
    CHECK(cache.pages(child, 1)[1] != cache.pages(parent, 1)[1]);
    CHECK(cache.used_bytes() == bytes / 3 * 4);
    std::vector<uint32_t> parent_tokens = tokens;
    append(cache, parent, parent_tokens, 7, 600);
    CHECK(cache.pages(twin, 0)[2] != cache.pages(parent, 0)[2]);
    CHECK(holds_tokens(cache, parent, parent_tokens));
    CHECK(holds_tokens(cache, child, child_tokens));
    CHECK(holds_tokens(cache, twin, tokens));
    const uint8_t* last = cache.pages(twin, 0)[2];
    append(cache, twin, tokens, 1, 700);
    CHECK(cache.pages(twin, 0)[2] == last);  // it is the only owner by now
    cache.release(parent);
    CHECK(holds_tokens(cache, child, child_tokens));
    CHECK(holds_tokens(cache, twin, tokens));
}

TEST_CASE("a sequence cut back into a page that another one shares leaves that one alone") {
    KvCache cache(CacheType::i8, kPlain);
    std::vector<uint32_t> tokens;
    const int64_t parent = cache.create();
    append(cache, parent, tokens, 128, 0);
    const int64_t child = cache.fork(parent, 128);
    std::vector<uint32_t> parent_tokens(tokens.begin(), tokens.begin() + 70);
    CHECK(cache.truncate(parent, 70));
    append(cache, parent, parent_tokens, 10, 900);
    CHECK(holds_tokens(cache, parent, parent_tokens));
    CHECK(holds_tokens(cache, child, tokens));
}

TEST_CASE("a window keeps what a sequence needs, what it may be cut back by, and no more") {
    KvCache cache(CacheType::f16, {{1, 16, 100}});
    std::vector<uint32_t> tokens;
    const int64_t id = cache.create();
    int64_t most = 0;
    for (int i = 0; i < 2000; ++i) {
        append(cache, id, tokens, 1, static_cast<uint32_t>(i));
        most = std::max(most, cache.held_positions());
        const auto length = static_cast<int64_t>(tokens.size());
        for (const int64_t position : {length - 100, length - 99 - kRollbackPositions}) {
            REQUIRE((position < 0 || cache.pages(id, 0)[position / kPagePositions] != nullptr));
        }
    }
    CHECK(most <= 100 + kRollbackPositions + 2 * kPagePositions);
    CHECK(holds_tokens(cache, id, tokens));
    CHECK(cache.pages(id, 0)[0] == nullptr);
    CHECK(cache.page(id, 0, 0) == nullptr);
    CHECK(cache.bytes() <= PagePool::kMinSlab);
    CHECK_FALSE(cache.truncate(id, 1500));
    CHECK(cache.length(id) == 2000);
    CHECK(cache.truncate(id, 2000 - kRollbackPositions));
    CHECK(cache.truncate(id, 0));  // an empty sequence needs nothing
    tokens.clear();
    append(cache, id, tokens, 90, 5000);
    CHECK(holds_tokens(cache, id, tokens));
}

TEST_CASE("the limit counts pages, shared ones once, and a refusal changes nothing") {
    KvCache cache(CacheType::f16, kWindows, 300);  // 5 pages
    std::vector<uint32_t> tokens;
    const int64_t id = cache.create();
    append(cache, id, tokens, 200, 0);
    const int64_t second = cache.fork(id, 200);
    CHECK(cache.held_positions() == 256);
    cache.reserve(second, 1);
    CHECK(cache.held_positions() == 320);
    const int64_t bytes = cache.used_bytes();
    REQUIRE_THROWS_WITH(cache.reserve(id, 57), TMAC_CONTAINS("holds 320 of 300 positions") &&
                                                   TMAC_CONTAINS("a sequence of 200 positions wants 57 more"));
    REQUIRE_THROWS_AS(cache.reserve(id, 57), CacheFull);
    CHECK(cache.used_bytes() == bytes);
    CHECK(cache.length(id) == 200);
    CHECK(cache.num_pages(id) == 4);
    const std::vector<uint8_t> saved = cache.save(id);
    REQUIRE_THROWS_AS(cache.restore(saved.data(), static_cast<int64_t>(saved.size())), CacheFull);
    CHECK(cache.num_sequences() == 2);
    CHECK(cache.used_bytes() == bytes);
    cache.release(second);
    append(cache, id, tokens, 57, 400);
    CHECK(holds_tokens(cache, id, tokens));
}

TEST_CASE("the largest limit is none") {
    KvCache cache(CacheType::f16, kPlain, INT64_MAX);
    std::vector<uint32_t> tokens;
    const int64_t id = cache.create();
    append(cache, id, tokens, 100, 0);
    CHECK(holds_tokens(cache, id, tokens));
}

TEST_CASE("a thousand sequences need the memory of the largest, and trimming gives it back") {
    KvCache cache(CacheType::f16, kWindows);
    int64_t bytes = 0;
    for (int i = 0; i < 1000; ++i) {
        std::vector<uint32_t> tokens;
        const int64_t id = cache.create();
        append(cache, id, tokens, 130, static_cast<uint32_t>(i));
        const int64_t other = cache.fork(id, 100);
        cache.reserve(other, 50);
        cache.release(id);
        cache.release(other);
        bytes = i == 0 ? cache.bytes() : bytes;
        REQUIRE(cache.bytes() == bytes);
        REQUIRE(cache.used_bytes() == 0);
    }
    CHECK(bytes > 0);
    cache.trim();
    CHECK(cache.bytes() == 0);
}

TEST_CASE("what was reserved and not committed is given back") {
    KvCache cache(CacheType::f32, kPlain);
    std::vector<uint32_t> tokens;
    const int64_t id = cache.create();
    append(cache, id, tokens, 60, 0);
    const int64_t bytes = cache.used_bytes();
    cache.reserve(id, 1000);
    CHECK(cache.num_pages(id) == 17);
    CHECK(cache.truncate(id, 60));
    CHECK(cache.used_bytes() == bytes);
    cache.reserve(id, 1000);
    cache.keep(id, {});
    CHECK(cache.used_bytes() == bytes);
    cache.reserve(id, 1000);
    cache.reserve(id, 10);  // a smaller reservation keeps the larger one
    cache.commit(id, 500);
    CHECK(cache.length(id) == 560);
}

TEST_CASE("wrong calls of the cache say what is wrong") {
    KvCache cache(CacheType::f16, kPlain);
    const int64_t id = cache.create();
    cache.reserve(id, 10);
    CHECK_THROWS_WITH(cache.commit(id, 11), TMAC_CONTAINS("10 positions are reserved, 11 cannot"));
    CHECK_THROWS_AS(cache.commit(id, -1), std::invalid_argument);
    CHECK_THROWS_AS(cache.reserve(id, -1), std::invalid_argument);
    CHECK_THROWS_WITH(cache.reserve(id, kMaxSequenceLength + 1), TMAC_CONTAINS("the longest has"));
    CHECK_THROWS_WITH(cache.keep(id, {3, 3}), TMAC_CONTAINS("slots ascend"));
    CHECK_THROWS_AS(cache.keep(id, {-1}), std::invalid_argument);
    CHECK_THROWS_AS(cache.keep(id, {10}), std::invalid_argument);
    CHECK_THROWS_AS(cache.truncate(id, 1), std::invalid_argument);
    CHECK_THROWS_AS(cache.fork(id, 1), std::invalid_argument);
    CHECK_THROWS_AS(cache.fork(id, -1), std::invalid_argument);
    CHECK_THROWS_AS(cache.page(id, 0, 1), std::invalid_argument);
    CHECK_THROWS_WITH(cache.pages(id, 2), TMAC_CONTAINS("2 layers, there is no layer 2"));
    cache.release(id);
    CHECK_THROWS_WITH(cache.length(id), TMAC_CONTAINS("no sequence 0"));
    CHECK_THROWS_AS(cache.release(id), std::invalid_argument);
    CHECK(cache.create() != id);
    CHECK_THROWS_AS(KvCache(CacheType::f16, {}), std::invalid_argument);
    CHECK_THROWS_AS(KvCache(CacheType::f16, {{0, 8, 0}}), std::invalid_argument);
    CHECK_THROWS_AS(KvCache(CacheType::f16, {{1, -8, 0}}), std::invalid_argument);
    CHECK_THROWS_AS(KvCache(CacheType::f16, {{1, 8, -1}}), std::invalid_argument);
    CHECK_THROWS_AS(KvCache(CacheType::f16, kPlain, -1), std::invalid_argument);
    CHECK_THROWS_AS(KvCache(CacheType::f32, std::vector<CacheLayer>(70, {65536, 65536, 0})), std::invalid_argument);
}
