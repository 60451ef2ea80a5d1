#include <algorithm>
#include <cmath>
#include <vector>

#include "catch.h"
#include "kernels/cached_head.h"
#include "kernels/vector_isas.h"
#include "kernels/vector_ops.h"

using namespace tmac;

namespace {

struct Query {
    int32_t begin;
    int32_t end;
};

/// The partial results of `queries` over one span.
std::vector<float> attend_span(const VectorOps& ops, const CacheLayout& layout, const std::vector<uint8_t>& piece,
                               const std::vector<float>& queries, const std::vector<Query>& ranges, float scale,
                               float softcap) {
    const uint8_t* keys[kSpanGroups];
    const uint8_t* values[kSpanGroups];
    const float* key_scales[kSpanGroups];
    const float* value_scales[kSpanGroups];
    for (int32_t group = 0; group < kSpanGroups; ++group) {
        const bool read = std::any_of(ranges.begin(), ranges.end(), [&](const Query& query) {
            return query.begin < query.end && query.begin < (group + 1) * kKeyGroup && group * kKeyGroup < query.end;
        });
        keys[group] = read ? piece.data() + layout.key_offset(group) : nullptr;
        values[group] = read ? piece.data() + layout.value_offset(group, kSpanGroups) : nullptr;
        key_scales[group] = reinterpret_cast<const float*>(piece.data() + layout.key_scale_offset(group, kSpanGroups));
        value_scales[group] =
            reinterpret_cast<const float*>(piece.data() + layout.value_scale_offset(group, kSpanGroups));
    }
    std::vector<const float*> pointers;
    std::vector<int32_t> begin;
    std::vector<int32_t> end;
    for (size_t i = 0; i < ranges.size(); ++i) {
        pointers.push_back(queries.data() + i * static_cast<size_t>(layout.head_dim));
        begin.push_back(ranges[i].begin);
        end.push_back(ranges[i].end);
    }
    const int64_t stride = partial_floats(layout.head_dim);
    std::vector<float> partials(ranges.size() * static_cast<size_t>(stride), 3.0F);
    ops.attend({layout.type, layout.head_dim, keys, values, key_scales, value_scales, pointers.data(),
                static_cast<int32_t>(ranges.size()), begin.data(), end.data(), scale, softcap, partials.data(),
                stride});
    return partials;
}

const CacheType kTypes[] = {CacheType::f32, CacheType::f16, CacheType::i8};

}  // namespace

TEST_CASE("one span of attention is what the page on numerics says", "[vector_attention]") {
    Random random(21);
    const std::vector<std::vector<Query>> cases = {
        {{0, 1}},
        {{0, 256}},
        {{3, 200}},
        {{17, 31}, {17, 31}},
        {{0, 37}, {0, 37}, {0, 37}},
        {{0, 100}, {0, 101}, {0, 102}, {0, 103}, {0, 104}, {0, 105}},
        {{0, 10}, {240, 256}, {5, 5}, {100, 120}},  // with holes that nobody reads
        {{0, 0}},
        {{40, 255}, {41, 255}, {41, 255}, {41, 255}, {41, 255}, {90, 91}, {7, 256}},
        std::vector<Query>(19, {2, 131}),
    };
    for (const int32_t head_dim : {16, 24, 64, 80, 128, 256}) {
        for (const CacheType type : kTypes) {
            const CacheLayout layout{type, head_dim};
            const std::vector<float> k = random.floats(kSpanPositions * head_dim);
            const std::vector<float> v = random.floats(kSpanPositions * head_dim);
            const CachedHead head(layout, kSpanPositions, k, v);
            for (const std::vector<Query>& ranges : cases) {
                const auto count = static_cast<int64_t>(ranges.size());
                const std::vector<float> queries = random.floats(count * head_dim);
                for (const float softcap : {0.0F, 2.5F}) {
                    for (const VectorOps* ops : runnable_vector_ops()) {
                        std::vector<uint8_t> piece(static_cast<size_t>(layout.head_bytes(kSpanGroups)));
                        head.write(*ops, k.data(), v.data(), 0, kSpanGroups, piece.data());
                        const std::vector<float> found =
                            attend_span(*ops, layout, piece, queries, ranges, 0.3F, softcap);
                        std::vector<float> expected;
                        for (int64_t i = 0; i < count; ++i) {
                            const Query& range = ranges[static_cast<size_t>(i)];
                            const std::vector<float> one = reference_span(*ops, head, queries.data() + i * head_dim,
                                                                          range.begin, range.end, 0.3F, softcap);
                            expected.insert(expected.end(), one.begin(), one.end());
                        }
                        CAPTURE(head_dim, static_cast<int>(type), count, softcap, ops->name);
                        CHECK(first_difference(found, expected) == -1);
                    }
                }
            }
        }
    }
}

TEST_CASE("positions outside of the range may hold anything", "[vector_attention]") {
    Random random(22);
    const int32_t head_dim = 48;
    for (const CacheType type : kTypes) {
        const CacheLayout layout{type, head_dim};
        const std::vector<float> k = random.floats(kSpanPositions * head_dim);
        const std::vector<float> v = random.floats(kSpanPositions * head_dim);
        const std::vector<float> queries = random.floats(3 * head_dim);
        const std::vector<Query> ranges = {{5, 90}, {6, 91}, {6, 91}};
        for (const VectorOps* ops : runnable_vector_ops()) {
            CAPTURE(static_cast<int>(type), ops->name);
            const auto run = [&](int64_t positions) {
                const CachedHead head(layout, positions, k, v);
                std::vector<uint8_t> piece(static_cast<size_t>(layout.head_bytes(kSpanGroups)));
                head.write(*ops, k.data(), v.data(), 0, kSpanGroups, piece.data());  // 0xff from `positions` on
                return attend_span(*ops, layout, piece, queries, ranges, 0.3F, 0.0F);
            };
            const std::vector<float> clean = run(256);
            CHECK(first_difference(run(91), clean) == -1);
            CHECK(std::none_of(clean.begin(), clean.end(), [](float value) { return std::isnan(value); }));
        }
    }
}

TEST_CASE("partial results merge and finish as the page on numerics says", "[vector_attention]") {
    Random random(23);
    for (const int32_t head_dim : {1, 16, 24, 128}) {
        const int64_t count = partial_floats(head_dim);
        const int64_t padded = count - 2;
        for (const VectorOps* ops : runnable_vector_ops()) {
            CAPTURE(head_dim, ops->name);
            std::vector<float> into = random.floats(count);
            const std::vector<float> from = random.floats(count);
            std::vector<float> factors = {into[static_cast<size_t>(padded)], from[static_cast<size_t>(padded)]};
            const float largest = std::max(factors[0], factors[1]);
            ops->exp(factors.data(), largest, 1.0F, 2, factors.data());
            std::vector<float> expected(static_cast<size_t>(count));
            for (size_t i = 0; i < expected.size(); ++i) {
                expected[i] = std::fma(from[i], factors[1], into[i] * factors[0]);
            }
            expected[static_cast<size_t>(padded)] = largest;
            const std::vector<float> before = into;
            ops->merge(from.data(), into.data(), head_dim);
            CHECK(first_difference(into, expected) == -1);

            std::vector<float> nothing(static_cast<size_t>(count), 0.0F);
            nothing[static_cast<size_t>(padded)] = -INFINITY;
            ops->merge(nothing.data(), into.data(), head_dim);
            CHECK(first_difference(into, expected) == -1);
            ops->merge(before.data(), nothing.data(), head_dim);
            CHECK(first_difference(nothing, before) == -1);

            std::vector<float> y(static_cast<size_t>(head_dim));
            ops->finish(before.data(), head_dim, y.data());
            for (size_t i = 0; i < y.size(); ++i) {
                CHECK(same_bits(y[i], before[i] / before.back()));
            }
        }
    }
}

TEST_CASE("a key or value that is no number is seen by whoever reads it", "[vector_attention]") {
    Random random(24);
    const int32_t head_dim = 32;
    for (const CacheType type : kTypes) {
        for (const float bad : {NAN, INFINITY}) {
            const CacheLayout layout{type, head_dim};
            const std::vector<float> k = random.floats(kSpanPositions * head_dim);
            std::vector<float> v = random.floats(kSpanPositions * head_dim);
            v[20 * static_cast<size_t>(head_dim) + 3] = bad;
            const std::vector<float> queries = random.floats(2 * head_dim);
            for (const VectorOps* ops : runnable_vector_ops()) {
                CAPTURE(static_cast<int>(type), bad, ops->name);
                const CachedHead head(layout, kSpanPositions, k, v);
                std::vector<uint8_t> piece(static_cast<size_t>(layout.head_bytes(kSpanGroups)));
                head.write(*ops, k.data(), v.data(), 0, kSpanGroups, piece.data());
                const std::vector<float> y = attend_span(*ops, layout, piece, queries, {{0, 20}, {0, 21}}, 0.3F, 0.0F);
                CHECK(std::isfinite(y[3]));
                CHECK_FALSE(std::isfinite(y[static_cast<size_t>(partial_floats(head_dim)) + 3]));
            }
        }
    }
}
