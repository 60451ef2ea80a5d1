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
    std::vector<std::vector<uint8_t>> rounded;
    std::vector<const uint8_t*> rounded_pointers;
    std::vector<int32_t> begin;
    std::vector<int32_t> end;
    for (size_t i = 0; i < ranges.size(); ++i) {
        pointers.push_back(queries.data() + i * static_cast<size_t>(layout.head_dim));
        rounded.emplace_back(static_cast<size_t>(rounded_query_bytes(layout.head_dim)), uint8_t{0xff});
        ops.round_query(pointers.back(), layout.head_dim, rounded.back().data());
        rounded_pointers.push_back(rounded.back().data());
        begin.push_back(ranges[i].begin);
        end.push_back(ranges[i].end);
    }
    const int64_t stride = partial_floats(layout.head_dim);
    std::vector<float> partials(ranges.size() * static_cast<size_t>(stride), 3.0F);
    ops.attend({layout.type, layout.head_dim, keys, values, key_scales, value_scales, pointers.data(),
                rounded_pointers.data(), static_cast<int32_t>(ranges.size()), begin.data(), end.data(), scale, softcap,
                partials.data(), stride});
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
    for (const int32_t head_dim : {16, 18, 24, 64, 80, 128, 256, 520}) {
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

TEST_CASE("the sums of a cache of int8 have room for the largest numbers", "[vector_attention]") {
    for (const int32_t head_dim : {4, 128, 516, 4096}) {
        for (const float key : {1.0F, -1.0F}) {
            const CacheLayout layout{CacheType::i8, head_dim};
            const auto size = static_cast<size_t>(kSpanPositions * head_dim);
            const std::vector<float> k(size, key);
            const std::vector<float> v(size, -key);
            const CachedHead head(layout, kSpanPositions, k, v);
            const std::vector<float> query(static_cast<size_t>(head_dim), -0.5F);
            const std::vector<float> expected =
                reference_span(*runnable_vector_ops().front(), head, query.data(), 0, kSpanPositions, 1e-3F, 0.0F);
            for (const VectorOps* ops : runnable_vector_ops()) {
                CAPTURE(head_dim, key, ops->name);
                std::vector<uint8_t> piece(static_cast<size_t>(layout.head_bytes(kSpanGroups)));
                head.write(*ops, k.data(), v.data(), 0, kSpanGroups, piece.data());
                const std::vector<float> found =
                    attend_span(*ops, layout, piece, query, {{0, kSpanPositions}}, 1e-3F, 0.0F);
                CHECK(first_difference(found, expected) == -1);
                CHECK(found[0] / found.back() == Approx(-key).epsilon(1e-3));
            }
        }
    }
}

// A query is off by half a unit at most, so a score by e = scale * unit / 2 * sum of |key|, and a weight by a factor
// within exp(+-2 e), against the largest one; a rounded weight by half a unit beside it. 1e-5 is for the float sums.
TEST_CASE("what rounding a query and the weights to integers costs is bounded", "[vector_attention]") {
    Random random(25);
    for (const int32_t head_dim : {24, 128}) {
        const CacheLayout layout{CacheType::i8, head_dim};
        const auto count = static_cast<size_t>(head_dim);
        const std::vector<float> k = random.floats(kSpanPositions * head_dim);
        const std::vector<float> v = random.floats(kSpanPositions * head_dim);
        const std::vector<float> query = random.floats(head_dim);
        const CachedHead head(layout, kSpanPositions, k, v);
        for (const float scale : {0.05F, 1.0F}) {
            std::vector<double> scores;
            double key_sum = 0.0;  // the largest sum of |key|
            for (size_t p = 0; p < kSpanPositions; ++p) {
                double score = 0.0;
                double sum = 0.0;
                for (size_t d = 0; d < count; ++d) {
                    const double key = double{head.keys[p * count + d]} * head.key_scales[p];
                    score += query[d] * key;
                    sum += std::fabs(key);
                }
                scores.push_back(score * scale);
                key_sum = std::max(key_sum, sum);
            }
            const double largest = *std::max_element(scores.begin(), scores.end());
            std::vector<double> exact(count, 0.0);
            double weight_sum = 0.0;
            double value_size = 0.0;
            for (size_t p = 0; p < kSpanPositions; ++p) {
                const double weight = std::exp(scores[p] - largest);
                weight_sum += weight;
                value_size = std::max(value_size, 127.0 * head.value_scales[p]);
                for (size_t d = 0; d < count; ++d) {
                    exact[d] += weight * head.values[p * count + d] * head.value_scales[p];
                }
            }
            double query_size = 0.0;
            for (const float q : query) {
                query_size = std::max(query_size, std::fabs(double{q}));
            }
            const double score_error = scale * query_size / kMostMultiplier / 2 * key_sum;
            const double weight_error = kSpanPositions * value_size / kMostMultiplier / 2 / weight_sum;
            const double bound = (std::exp(4 * score_error) - 1) * value_size +
                                 std::exp(4 * score_error) * weight_error + 1e-5 * value_size;
            for (const VectorOps* ops : runnable_vector_ops()) {
                std::vector<uint8_t> piece(static_cast<size_t>(layout.head_bytes(kSpanGroups)));
                head.write(*ops, k.data(), v.data(), 0, kSpanGroups, piece.data());
                const std::vector<float> found =
                    attend_span(*ops, layout, piece, query, {{0, kSpanPositions}}, scale, 0.0F);
                double worst = 0.0;
                for (size_t d = 0; d < count; ++d) {
                    worst = std::max(worst, std::fabs(double{found[d]} / found.back() - exact[d] / weight_sum));
                }
                CAPTURE(head_dim, scale, ops->name, bound);
                CHECK(worst <= bound);
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
