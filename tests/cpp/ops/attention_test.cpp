#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <vector>

#include "catch.h"
#include "kernels/cached_head.h"
#include "kernels/vector_isas.h"

using namespace tmac;

namespace {

/// A layer's cache of one sequence: a page for every 64 positions, in memory of its own.
struct Cache {
    CacheLayout layout;
    int32_t kv_heads;
    std::vector<CachedHead> heads;
    std::vector<std::vector<float>> keys;
    std::vector<std::vector<float>> values;
    std::vector<std::unique_ptr<uint8_t[]>> memory;
    std::vector<const uint8_t*> pages;

    Cache(const CacheLayout& cache, int32_t heads_of_keys, int64_t positions, uint32_t seed)
        : layout(cache), kv_heads(heads_of_keys) {
        Random random(seed);
        for (int32_t head = 0; head < kv_heads; ++head) {
            keys.push_back(random.floats(positions * layout.head_dim));
            values.push_back(random.floats(positions * layout.head_dim));
            heads.emplace_back(layout, positions, keys.back(), values.back());
        }
        for (int64_t first = 0; first < positions; first += kPagePositions) {
            memory.push_back(piece(first, kPageGroups));
            pages.push_back(memory.back().get());
        }
    }

    /// All key heads of positions [first, first + 16 groups); where nothing is stored, every byte is 0xff.
    std::unique_ptr<uint8_t[]> piece(int64_t first, int64_t groups) const {
        auto result = std::make_unique<uint8_t[]>(static_cast<size_t>(kv_heads * layout.head_bytes(groups)));
        for (int32_t head = 0; head < kv_heads; ++head) {
            const auto at = static_cast<size_t>(head);
            heads[at].write(vector_ops(), keys[at].data(), values[at].data(), first, groups,
                            result.get() + head * layout.head_bytes(groups));
        }
        return result;
    }
};

struct Shape {
    int32_t heads;
    int32_t kv_heads;
    int32_t head_dim;
};

/// docs/numerics.md, one number at a time: every span, merged from left to right.
std::vector<float> reference_row(const Cache& cache, const Shape& shape, const float* queries, int64_t begin,
                                 int64_t end, float softcap) {
    const VectorOps& ops = *find_vector_ops("scalar");
    std::vector<float> y(static_cast<size_t>(shape.heads * shape.head_dim));
    for (int32_t head = 0; head < shape.heads; ++head) {
        const CachedHead& cached = cache.heads[static_cast<size_t>(head / (shape.heads / shape.kv_heads))];
        std::vector<float> merged;
        for (int64_t from = begin; from < end; from = (from / kSpanPositions + 1) * kSpanPositions) {
            const int64_t to = std::min(end, (from / kSpanPositions + 1) * kSpanPositions);
            const std::vector<float> partial =
                reference_span(ops, cached, queries + head * shape.head_dim, from, to, 0.125F, softcap);
            if (merged.empty()) {
                merged = partial;
            } else {
                ops.merge(partial.data(), merged.data(), shape.head_dim);
            }
        }
        ops.finish(merged.data(), shape.head_dim, y.data() + head * shape.head_dim);
    }
    return y;
}

AttentionInput input_of(const Shape& shape, const CacheLayout& layout, const std::vector<float>& queries,
                        const std::vector<CachedPath>& paths, float softcap = 0.0F) {
    return {queries.data(),
            int64_t{shape.heads} * shape.head_dim,
            shape.head_dim,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            0.125F,
            softcap,
            layout,
            paths.data(),
            static_cast<int64_t>(paths.size())};
}

/// Every row's result, one after the other.
std::vector<float> run(const AttentionInput& input, int num_threads, const VectorOps& ops = vector_ops()) {
    AttentionScratch scratch(ops);
    attend(input, num_threads, scratch);
    const auto columns = static_cast<size_t>(input.heads * input.head_dim);
    std::vector<float> y(static_cast<size_t>(input.rows) * columns);
    for (int64_t row = 0; row < input.rows; ++row) {
        attention_row(scratch, row, y.data() + static_cast<size_t>(row) * columns);
    }
    return y;
}

const Shape kShapes[] = {{4, 4, 32}, {6, 2, 24}, {8, 1, 64}, {72, 1, 16}};

}  // namespace

TEST_CASE("attention is what the page on numerics says, with any number of threads", "[attention]") {
    for (const Shape& shape : kShapes) {
        for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
            const CacheLayout layout{type, shape.head_dim};
            const int64_t length = 700;
            const Cache cache(layout, shape.kv_heads, length, 31);
            Random random(32);
            for (const int64_t rows : {int64_t{1}, int64_t{3}, int64_t{70}}) {
                const std::vector<float> queries = random.floats(rows * shape.heads * shape.head_dim);
                std::vector<CachedPath> paths;
                std::vector<float> expected;
                for (int64_t row = 0; row < rows; ++row) {
                    const int64_t end = length - rows + row + 1;
                    const int64_t begin =
                        row % 2 == 0 ? 0 : std::max<int64_t>(0, end - 300);  // with and without window
                    paths.push_back({cache.pages.data(), begin, end, nullptr, 0, 0});
                    const std::vector<float> y = reference_row(
                        cache, shape, queries.data() + row * shape.heads * shape.head_dim, begin, end, 0.0F);
                    expected.insert(expected.end(), y.begin(), y.end());
                }
                for (const int threads : {1, 2, 7, 64}) {
                    CAPTURE(shape.heads, shape.kv_heads, static_cast<int>(type), rows, threads);
                    CHECK(first_difference(run(input_of(shape, layout, queries, paths), threads), expected) == -1);
                }
            }
        }
    }
}

TEST_CASE("a row's result does not depend on its neighbours, nor on the instruction set", "[attention]") {
    const Shape shape{6, 2, 40};
    const CacheType type = GENERATE(CacheType::f16, CacheType::i8);
    const CacheLayout layout{type, shape.head_dim};
    const Cache one(layout, shape.kv_heads, 300, 41);
    const Cache other(layout, shape.kv_heads, 520, 42);
    Random random(43);
    const std::vector<float> queries = random.floats(5 * shape.heads * shape.head_dim);
    const std::vector<CachedPath> paths = {{one.pages.data(), 0, 300, nullptr, 0, 0},
                                           {other.pages.data(), 0, 519, nullptr, 0, 0},
                                           {other.pages.data(), 0, 520, nullptr, 0, 0},
                                           {one.pages.data(), 250, 260, nullptr, 0, 0},
                                           {other.pages.data(), 0, 1, nullptr, 0, 0}};
    const std::vector<float> together = run(input_of(shape, layout, queries, paths, 5.0F), 2);
    const auto columns = static_cast<size_t>(shape.heads * shape.head_dim);
    for (size_t row = 0; row < paths.size(); ++row) {
        const std::vector<float> alone_queries(queries.begin() + static_cast<std::ptrdiff_t>(row * columns),
                                               queries.begin() + static_cast<std::ptrdiff_t>((row + 1) * columns));
        const std::vector<CachedPath> path = {paths[row]};
        const std::vector<float> expected(together.begin() + static_cast<std::ptrdiff_t>(row * columns),
                                          together.begin() + static_cast<std::ptrdiff_t>((row + 1) * columns));
        for (const VectorOps* ops : runnable_vector_ops()) {
            CAPTURE(static_cast<int>(type), row, ops->name);
            CHECK(first_difference(run(input_of(shape, layout, alone_queries, path, 5.0F), 8, *ops), expected) == -1);
        }
    }
}

TEST_CASE("a tail that was gathered elsewhere gives the bits of the pages", "[attention]") {
    const Shape shape{4, 2, 48};
    for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
        const CacheLayout layout{type, shape.head_dim};
        const int64_t length = 301;
        const Cache cache(layout, shape.kv_heads, length, 51);
        Random random(52);
        const std::vector<float> queries = random.floats(4 * shape.heads * shape.head_dim);
        for (const int64_t tail_begin : {int64_t{0}, int64_t{240}, int64_t{256}, int64_t{288}}) {
            const int64_t groups = (length - tail_begin + kKeyGroup - 1) / kKeyGroup;
            const auto tail = cache.piece(tail_begin, groups);
            const auto same = cache.piece(tail_begin, groups + 1);
            std::vector<const uint8_t*> before = cache.pages;  // what the tail replaces is not there
            for (auto page = static_cast<size_t>((tail_begin + kPagePositions - 1) / kPagePositions);
                 page < before.size(); ++page) {
                before[page] = nullptr;
            }
            std::vector<CachedPath> plain;
            std::vector<CachedPath> gathered;
            for (int64_t row = 0; row < 4; ++row) {
                plain.push_back({cache.pages.data(), 0, length - 3 + row, nullptr, 0, 0});
                gathered.push_back({before.data(), 0, length - 3 + row, row == 1 ? same.get() : tail.get(), tail_begin,
                                    row == 1 ? groups + 1 : groups});
            }
            for (const int threads : {1, 8}) {
                CAPTURE(static_cast<int>(type), tail_begin, threads);
                CHECK(first_difference(run(input_of(shape, layout, queries, gathered), threads),
                                       run(input_of(shape, layout, queries, plain), threads)) == -1);
            }
        }
    }
}

TEST_CASE("pages before a window may be gone", "[attention]") {
    const Shape shape{2, 2, 16};
    const CacheLayout layout{CacheType::f16, shape.head_dim};
    const Cache cache(layout, shape.kv_heads, 400, 61);
    Random random(62);
    const std::vector<float> queries = random.floats(shape.heads * shape.head_dim);
    const std::vector<CachedPath> whole = {{cache.pages.data(), 330, 400, nullptr, 0, 0}};
    std::vector<const uint8_t*> left = cache.pages;
    std::fill(left.begin(), left.begin() + 5, nullptr);
    const std::vector<CachedPath> window = {{left.data(), 330, 400, nullptr, 0, 0}};
    CHECK(first_difference(run(input_of(shape, layout, queries, window), 2),
                           run(input_of(shape, layout, queries, whole), 2)) == -1);
}

TEST_CASE("attention is close to exact", "[attention]") {
    const Shape shape{2, 1, 64};
    const CacheLayout layout{CacheType::f32, shape.head_dim};
    const int64_t length = 1000;
    const Cache cache(layout, shape.kv_heads, length, 71);
    Random random(72);
    const std::vector<float> queries = random.floats(shape.heads * shape.head_dim);
    const std::vector<CachedPath> paths = {{cache.pages.data(), 0, length, nullptr, 0, 0}};
    const std::vector<float> y = run(input_of(shape, layout, queries, paths), 1);
    const CachedHead& head = cache.heads[0];
    for (int32_t h = 0; h < shape.heads; ++h) {
        std::vector<double> weights;
        double sum = 0.0;
        for (int64_t p = 0; p < length; ++p) {
            double score = 0.0;
            for (int32_t d = 0; d < shape.head_dim; ++d) {
                score += static_cast<double>(queries[static_cast<size_t>(h * shape.head_dim + d)]) *
                         static_cast<double>(head.keys[static_cast<size_t>(p * shape.head_dim + d)]);
            }
            weights.push_back(std::exp(0.125 * score));
            sum += weights.back();
        }
        for (int32_t d = 0; d < shape.head_dim; ++d) {
            double exact = 0.0;
            for (int64_t p = 0; p < length; ++p) {
                exact += weights[static_cast<size_t>(p)] / sum *
                         static_cast<double>(head.values[static_cast<size_t>(p * shape.head_dim + d)]);
            }
            // A score, at most 8 in magnitude, is off by 66 roundings of at most 8, so a weight by 528 * 2^-24 and
            // exp's 1.5e-7, the sum likewise; 256 roundings of a span's sum and a few of merging it. Values are
            // below 1.
            const double bound = 2 * (528 * 0x1p-24 + 1.5e-7) + (256 + 16 + 8) * 0x1p-24;
            CHECK(std::abs(static_cast<double>(y[static_cast<size_t>(h * shape.head_dim + d)]) - exact) < bound);
        }
    }
}

TEST_CASE("attention refuses what does not fit", "[attention]") {
    const Shape shape{4, 2, 16};
    const CacheLayout layout{CacheType::f16, 16};
    const Cache cache(layout, 2, 64, 81);
    const std::vector<float> queries(64, 0.5F);
    const auto call = [&](const Shape& asked, const CacheLayout& cached, const CachedPath& path) {
        run(input_of(asked, cached, queries, {path}), 1);
    };
    const CachedPath path{cache.pages.data(), 0, 64, nullptr, 0, 0};
    CHECK_NOTHROW(call(shape, layout, path));
    CHECK_THROWS_WITH(call({4, 3, 16}, layout, path), TMAC_CONTAINS("4 heads"));
    CHECK_THROWS_WITH(call(shape, {CacheType::f16, 32}, path), TMAC_CONTAINS("head_dim"));
    CHECK_THROWS_WITH(call(shape, layout, {cache.pages.data(), 5, 5, nullptr, 0, 0}), TMAC_CONTAINS("positions 5"));
    CHECK_THROWS_WITH(call(shape, layout, {cache.pages.data(), 0, 64, cache.pages[0], 32, 1}), TMAC_CONTAINS("tail"));
    AttentionScratch scratch;
    float y = 0.0F;
    CHECK_THROWS_WITH(attention_row(scratch, 0, &y), TMAC_CONTAINS("row 0"));
}
