#include "runtime/top_logits.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "catch.h"
#include "random.h"

using namespace tmac;

namespace {

std::vector<int32_t> ids_of(const std::vector<Candidate>& candidates) {
    std::vector<int32_t> ids(candidates.size());
    std::transform(candidates.begin(), candidates.end(), ids.begin(), [](const Candidate& one) { return one.id; });
    return ids;
}

std::vector<float> some_logits(Random& random, int64_t vocab, uint32_t kind) {
    std::vector<float> logits = random.floats(vocab);
    for (size_t i = 0; i < logits.size(); ++i) {
        const auto place = static_cast<float>(i);
        const float kinds[] = {logits[i], std::floor(logits[i] * 5.0F),
                               place,     -place,
                               1.5F,      i % 3 == 0 ? -std::numeric_limits<float>::infinity() : logits[i]};
        logits[i] = kinds[kind];
    }
    return logits;
}

}  // namespace

TEST_CASE("the largest logits are those that a sort finds, with all that equal the last of them") {
    Random random(21);
    for (const int64_t vocab : {1, 5, 256, 257, 3000}) {
        for (uint32_t kind = 0; kind < 6; ++kind) {
            const std::vector<float> logits = some_logits(random, vocab, kind);
            for (const int64_t count :
                 {int64_t{1}, int64_t{2}, int64_t{50}, int64_t{700}, vocab - 1, vocab, vocab + 5}) {
                if (count < 1) {
                    continue;
                }
                std::vector<float> sorted = logits;
                std::sort(sorted.begin(), sorted.end(), std::greater<>());
                const float least = sorted[static_cast<size_t>(std::min(count, vocab)) - 1];
                std::vector<int32_t> expected;
                for (int64_t i = 0; i < vocab; ++i) {
                    const float logit = logits[static_cast<size_t>(i)];
                    if (logit >= least && std::isfinite(logit)) {
                        expected.push_back(static_cast<int32_t>(i));
                    }
                }
                std::vector<Candidate> found;
                select_top(logits.data(), vocab, count, found);
                INFO("vocab " << vocab << " kind " << kind << " count " << count);
                REQUIRE(ids_of(found) == expected);
            }
        }
    }
}

TEST_CASE("the mass that is kept is that of a sort") {
    Random random(22);
    for (const int64_t count : {1, 2, 3, 10, 500, 5000}) {
        for (uint32_t kind = 0; kind < 5; ++kind) {
            std::vector<Candidate> candidates;
            const std::vector<float> logits = some_logits(random, count, kind);
            double total = 0.0;
            for (int64_t i = 0; i < count; ++i) {
                // Weights of few bits: sums are exact in any order.
                const auto weight = static_cast<float>(random.below(64)) / 64.0F;
                candidates.push_back({logits[static_cast<size_t>(i)], static_cast<int32_t>(3 * i), weight});
                total += static_cast<double>(weight);
            }
            std::vector<Candidate> sorted = candidates;
            std::sort(sorted.begin(), sorted.end(), precedes);
            for (const double mass : {0.0, 0.3 * total, 0.5, 0.9 * total, total, 2.0 * total}) {
                std::vector<int32_t> expected;
                double before = 0.0;
                for (const Candidate& candidate : sorted) {
                    if (expected.empty() || before < mass) {
                        expected.push_back(candidate.id);
                    }
                    before += static_cast<double>(candidate.weight);
                }
                std::sort(expected.begin(), expected.end());
                std::vector<Candidate> kept = candidates;
                keep_mass(kept, mass);
                INFO("count " << count << " kind " << kind << " mass " << mass << " of " << total);
                REQUIRE(ids_of(kept) == expected);
            }
        }
    }
}
