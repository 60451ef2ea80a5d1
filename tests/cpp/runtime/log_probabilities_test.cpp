#include "runtime/log_probabilities.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "catch.h"
#include "random.h"

using namespace tmac;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

double reference(const float* logits, int64_t vocab, int64_t id) {
    const double largest = static_cast<double>(*std::max_element(logits, logits + vocab));
    double sum = 0.0;
    for (int64_t i = 0; i < vocab; ++i) {
        sum += std::exp(static_cast<double>(logits[i]) - largest);
    }
    return static_cast<double>(logits[id]) - largest - std::log(sum);
}

}  // namespace

TEST_CASE("log-probabilities are those of double arithmetic, the same with any number of threads") {
    Random random(31);
    for (const int64_t vocab : {1, 2, 100, 5001}) {
        for (const float scale : {0.0F, 0.01F, 8.0F, 1000.0F}) {
            constexpr int64_t kRows = 9;
            std::vector<float> logits = random.floats(kRows * vocab);
            std::vector<int32_t> ids;
            for (float& logit : logits) {
                logit *= scale;
            }
            for (int64_t row = 0; row < kRows; ++row) {
                ids.push_back(static_cast<int32_t>(random.below(static_cast<uint32_t>(vocab))));
            }
            std::vector<float> one(kRows);
            std::vector<float> three(kRows);
            log_probabilities(logits.data(), kRows, vocab, ids.data(), one.data(), 1);
            log_probabilities(logits.data(), kRows, vocab, ids.data(), three.data(), 3);
            CHECK(std::memcmp(one.data(), three.data(), kRows * sizeof(float)) == 0);
            for (int64_t row = 0; row < kRows; ++row) {
                const auto at = static_cast<size_t>(row);
                const double expected = reference(logits.data() + row * vocab, vocab, ids[at]);
                // Weights in f32 with an error of some 2^-23 each, and the rounding of the result.
                CHECK(std::abs(static_cast<double>(one[at]) - expected) <= 5e-7 + 6e-8 * std::abs(expected));
            }
        }
    }
}

TEST_CASE("the most probable tokens come in order, of equal ones the lower id first") {
    Random random(32);
    std::vector<float> logits = random.floats(3000);
    for (float& logit : logits) {
        logit = std::floor(logit * 20.0F);
    }
    logits[7] = -kInfinity;
    const std::vector<TokenLogProbability> top = top_log_probabilities(logits.data(), 3000, 400);
    REQUIRE(top.size() == 400);
    for (size_t i = 0; i < top.size(); ++i) {
        float same = 0.0F;
        log_probabilities(logits.data(), 1, 3000, &top[i].id, &same, 1);
        REQUIRE(top[i].value == same);
        if (i > 0) {
            const float before = logits[static_cast<size_t>(top[i - 1].id)];
            const float here = logits[static_cast<size_t>(top[i].id)];
            REQUIRE((before > here || (before == here && top[i - 1].id < top[i].id)));
        }
    }
    const float last = logits[static_cast<size_t>(top.back().id)];
    CHECK(std::count_if(logits.begin(), logits.end(), [&](float logit) { return logit > last; }) <= 400);
    CHECK(top_log_probabilities(logits.data(), 3000, 0).empty());
    CHECK(top_log_probabilities(logits.data(), 3000, 9999).size() == 2999);  // one has no probability
}

TEST_CASE("log-probabilities of what is none are refused") {
    std::vector<float> logits = {1.0F, 2.0F, 3.0F, 4.0F};
    const std::vector<int32_t> ids = {1, 0};
    std::vector<float> out(2);
    const auto run = [&](const std::vector<int32_t>& wanted) {
        log_probabilities(logits.data(), 2, 2, wanted.data(), out.data(), 1);
    };
    CHECK_NOTHROW(run(ids));
    CHECK_THROWS_WITH(run({1, 2}), TMAC_CONTAINS("token 2 of row 1: the vocabulary has 2 tokens"));
    CHECK_THROWS_AS(run({-1, 0}), std::invalid_argument);
    logits[2] = -kInfinity;
    run(ids);
    CHECK(out[1] == -kInfinity);
    logits[3] = -kInfinity;
    CHECK_THROWS_WITH(run(ids), TMAC_CONTAINS("the largest logit of row 1 is -inf"));
    logits[3] = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_WITH(run(ids), TMAC_CONTAINS("NaN among the logits of row 1"));
    CHECK_THROWS_AS(top_log_probabilities(logits.data() + 2, 2, 1), std::invalid_argument);
    CHECK_THROWS_AS(top_log_probabilities(logits.data(), 2, -1), std::invalid_argument);
    CHECK_THROWS_AS(top_log_probabilities(logits.data(), 0, 1), std::invalid_argument);
}
