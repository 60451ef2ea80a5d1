#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

#include "catch.h"
#include "random.h"
#include "runtime/philox.h"
#include "runtime/sampling_reference.h"

using namespace tmac;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int32_t sample(Sampler& sampler, std::vector<float> logits, const uint32_t* mask = nullptr) {
    return sampler.sample(logits.data(), static_cast<int64_t>(logits.size()), nullptr, 0, mask);
}

SamplingParams greedy() {
    SamplingParams params;
    params.temperature = 0.0F;
    return params;
}

/// Random logits; of some kinds many are equal, or most are far below the largest.
std::vector<float> random_logits(Random& random, int64_t vocab) {
    std::vector<float> logits = random.floats(vocab);
    const uint32_t kind = random.below(4);
    const float scale = kind == 0 ? 30.0F : kind == 1 ? 0.5F : 6.0F;
    for (float& logit : logits) {
        logit = kind == 3 ? std::floor(logit * 4.0F) : logit * scale;
    }
    return logits;
}

SamplingParams random_params(Random& random, int64_t vocab) {
    SamplingParams params;
    const float temperatures[] = {1.0F, 0.7F, 1.9F, 0.05F};
    params.temperature = temperatures[random.below(4)];
    const int32_t counts[] = {0, 1, 2, 40, 300, static_cast<int32_t>(vocab) - 1, static_cast<int32_t>(vocab) + 7};
    params.top_k = std::max(counts[random.below(7)], 0);
    const float masses[] = {1.0F, 1.0F, 0.95F, 0.5F, 0.1F, 0.0F};
    params.top_p = masses[random.below(6)];
    const float shares[] = {0.0F, 0.0F, 0.05F, 0.4F, 1.0F};
    params.min_p = shares[random.below(5)];
    params.seed = random.below(1U << 31);
    return params;
}

}  // namespace

TEST_CASE("Philox gives the numbers of its authors' known answers") {
    CHECK(philox({0, 0, 0, 0}, {0, 0}) == std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
    CHECK(philox({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}) ==
          std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
    CHECK(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
          std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
    for (uint64_t i = 0; i < 1000; ++i) {
        CHECK((random_unit(i, i * i) >= 0.0 && random_unit(i, i * i) < 1.0));
    }
    CHECK(random_unit(1, 2) != random_unit(2, 1));
    CHECK(random_unit(1, 2, 0) != random_unit(1, 2, 1));
}

TEST_CASE("every draw is the one that sorting and summing in double gives") {
    Random random(11);
    int64_t compared = 0;
    int64_t draws = 0;
    for (const int64_t vocab : {1, 2, 31, 257, 1024, 3000, 40000}) {
        for (int i = 0; i < (vocab > 10000 ? 60 : 300); ++i) {
            const SamplingParams params = random_params(random, vocab);
            const std::vector<float> logits = random_logits(random, vocab);
            const std::vector<double> probabilities = reference_probabilities(logits, params);
            Sampler sampler(params);
            for (uint64_t j = 0; j < 5; ++j) {
                const ReferenceDraw expected = reference_draw(probabilities, random_unit(params.seed, j));
                const int32_t token = sample(sampler, logits);
                ++draws;
                if (expected.distance > 1e-6) {  // else the rounding of f32 weights may decide
                    INFO("vocab " << vocab << " T " << params.temperature << " k " << params.top_k << " p "
                                  << params.top_p << " min_p " << params.min_p);
                    REQUIRE(token == expected.token);
                    ++compared;
                }
            }
        }
    }
    CHECK(compared > draws * 9 / 10);
}

TEST_CASE("tokens come as often as their probabilities say") {
    Random random(4);
    std::vector<float> logits = random.floats(4000);
    for (size_t i = 0; i < logits.size(); ++i) {
        logits[i] = i % 250 == 0 ? 3.0F * logits[i] : -1e4F;
    }
    for (const auto& [top_k, top_p, min_p] :
         {std::tuple(0, 1.0F, 0.0F), std::tuple(9, 1.0F, 0.0F), std::tuple(0, 0.8F, 0.0F), std::tuple(0, 1.0F, 0.1F)}) {
        SamplingParams params;
        params.temperature = 1.3F;
        params.top_k = top_k;
        params.top_p = top_p;
        params.min_p = min_p;
        params.seed = 12345;
        const std::vector<double> probabilities = reference_probabilities(logits, params);
        Sampler sampler(params);
        constexpr int kDraws = 20000;
        std::vector<int> counts(logits.size());
        for (int i = 0; i < kDraws; ++i) {
            ++counts[static_cast<size_t>(sample(sampler, logits))];
        }
        double chi_square = 0.0;
        double degrees = -1.0;
        for (size_t i = 0; i < logits.size(); ++i) {
            const double expected = probabilities[i] * kDraws;
            if (probabilities[i] == 0.0) {
                CHECK(counts[i] == 0);
                continue;
            }
            CHECK(expected > 20.0);
            chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
            degrees += 1.0;
        }
        // Wilson and Hilferty's approximation of the quantile at 4.75 standard deviations, which one in a million is
        // above.
        const double spread = 2.0 / (9.0 * degrees);
        CHECK(degrees > 3.0);
        CHECK(chi_square < degrees * std::pow(1.0 - spread + 4.75 * std::sqrt(spread), 3.0));
    }
}

TEST_CASE("temperature 0 takes the largest logit, of equal ones the first") {
    Sampler sampler(greedy());
    CHECK(sample(sampler, {1.0F, 3.0F, -2.0F, 3.0F}) == 1);
    CHECK(sample(sampler, {-0.0F, 0.0F}) == 0);
    CHECK(sample(sampler, {-kInfinity, -5.0F}) == 1);
    Random random(6);
    for (const int64_t vocab : {1, 1023, 1024, 1025, 5000}) {
        std::vector<float> logits = random.floats(vocab);
        for (const int64_t at : {vocab - 1, vocab / 2, int64_t{0}}) {
            logits[static_cast<size_t>(at)] = 1.5F;  // the ones before stay: the first is now this one
            CHECK(sample(sampler, logits) == at);
        }
    }
    SamplingParams tiny;
    tiny.temperature = std::numeric_limits<float>::denorm_min();
    Sampler almost(tiny);
    CHECK(sample(almost, {1.0F, 1.0000001F}) == 1);
    tiny.temperature = 1e-30F;
    Sampler cold(tiny);
    CHECK(sample(cold, {-1e30F, 2.0F, 1.9F}) == 1);
}

TEST_CASE("a token's random number depends on the seed and its place alone") {
    SamplingParams params;
    params.seed = 77;
    Random random(8);
    const std::vector<float> logits = random.floats(500);
    Sampler first(params);
    std::vector<int32_t> tokens;
    for (int i = 0; i < 30; ++i) {
        tokens.push_back(sample(first, logits));
    }
    CHECK(first.draws() == 30);
    Sampler second(params);
    for (const uint64_t i : {uint64_t{29}, uint64_t{3}, uint64_t{17}}) {
        second.set_draws(i);
        CHECK(sample(second, logits) == tokens[i]);
    }
    params.seed = 78;
    Sampler other(params);
    std::vector<int32_t> others;
    for (int i = 0; i < 30; ++i) {
        others.push_back(sample(other, logits));
    }
    CHECK(others != tokens);
}

TEST_CASE("filters keep at least the most probable token") {
    SamplingParams params;
    params.top_p = 0.0F;
    Sampler top_p(params);
    params.top_p = 1.0F;
    params.min_p = 1.0F;
    Sampler min_p(params);
    params.min_p = 0.0F;
    params.top_k = 1;
    Sampler top_k(params);
    Random random(2);
    for (int i = 0; i < 50; ++i) {
        const std::vector<float> logits = random.floats(700);
        const auto expected = std::max_element(logits.begin(), logits.end()) - logits.begin();
        CHECK(sample(top_p, logits) == expected);
        CHECK(sample(min_p, logits) == expected);
        CHECK(sample(top_k, logits) == expected);
    }
}

TEST_CASE("equal logits at the edge: top_k keeps them all, top_p the lower ids") {
    SamplingParams params;
    params.top_k = 2;
    Sampler top_k(params);
    params.top_k = 0;
    params.top_p = 0.5F;
    Sampler top_p(params);
    std::vector<int> by_k(5);
    std::vector<int> by_p(5);
    for (int i = 0; i < 400; ++i) {
        ++by_k[static_cast<size_t>(sample(top_k, {2.0F, 1.0F, 2.0F, 2.0F, 2.0F}))];
        ++by_p[static_cast<size_t>(sample(top_p, {-kInfinity, 1.0F, 1.0F, 1.0F, 1.0F}))];
    }
    CHECK(by_k[1] == 0);
    CHECK(std::min({by_k[0], by_k[2], by_k[3], by_k[4]}) > 50);
    CHECK(by_p[1] + by_p[2] == 400);
    CHECK(std::min(by_p[1], by_p[2]) > 100);
}

TEST_CASE("a mask allows its tokens only, in words of 32") {
    for (const int64_t vocab : {1, 31, 32, 33, 100, 1000}) {
        Random random(static_cast<uint32_t>(vocab));
        for (int i = 0; i < 20; ++i) {
            std::vector<float> logits = random.floats(vocab);
            std::vector<uint32_t> mask(static_cast<size_t>(vocab + 31) / 32, ~0U);
            int32_t best = -1;
            for (int64_t token = 0; token < vocab; ++token) {
                const auto at = static_cast<size_t>(token);
                if (random.below(3) == 0) {
                    mask[at / 32] &= ~(1U << (token % 32));
                    logits[at] = token % 2 == 0 ? kNan : kInfinity;  // what is not allowed is not looked at
                } else if (best < 0 || logits[at] > logits[static_cast<size_t>(best)]) {
                    best = static_cast<int32_t>(token);
                }
            }
            Sampler sampler(greedy());
            if (best < 0) {
                CHECK_THROWS_WITH(sample(sampler, logits, mask.data()), TMAC_CONTAINS("the mask allows none of"));
            } else {
                CHECK(sample(sampler, logits, mask.data()) == best);
            }
        }
    }
}

TEST_CASE("bias is added before the penalties, which transformers and OpenAI define") {
    SamplingParams params = greedy();
    params.repetition_penalty = 2.0F;
    params.presence_penalty = 0.25F;
    params.frequency_penalty = 0.5F;
    params.logit_bias = {{0, -3.0F}, {5, 10.0F}, {6, -kInfinity}};
    Sampler sampler(params);
    const std::vector<int32_t> history = {0, 1, 1, 99, 2, 3, 3, 3, 0};  // a prompt of 5; 99 is in no vocabulary
    std::vector<float> logits = {1.0F, 1.0F, -1.0F, 4.0F, 0.5F, -9.0F, 7.0F};
    CHECK(sampler.sample(logits.data(), 7, history.data(), 9, nullptr, 5) == 5);
    CHECK(logits ==
          std::vector<float>{(1.0F - 3.0F) * 2.0F - 0.75F, 0.5F, -2.0F, 2.0F - 0.25F - 1.5F, 0.5F, 1.0F, -kInfinity});
    logits = {1.0F, 1.0F, -1.0F, 4.0F, 0.5F, -9.0F, 7.0F};
    sampler.sample(logits.data(), 7, history.data(), 9);  // without a prompt all are counted
    CHECK(logits == std::vector<float>{(1.0F - 3.0F) * 2.0F - 1.25F, 0.5F - 1.25F, -2.0F - 0.75F, 2.0F - 1.75F, 0.5F,
                                       1.0F, -kInfinity});
    logits = {1.0F, 1.0F};
    CHECK_THROWS_WITH(sampler.sample(logits.data(), 2, history.data(), 9),
                      TMAC_CONTAINS("logit_bias of token 5: the vocabulary has 2 tokens"));
    const std::vector<int32_t> negative = {1, -4};
    params.logit_bias.clear();
    Sampler unbiased(params);
    CHECK_THROWS_WITH(unbiased.sample(logits.data(), 2, negative.data(), 2), TMAC_CONTAINS("has a token -4"));
    CHECK(unbiased.draws() == 0);
}

TEST_CASE("logits that no token can be chosen by are refused") {
    SamplingParams params;
    params.top_k = 3;
    for (const SamplingParams& each : {greedy(), SamplingParams(), params}) {
        Sampler sampler(each);
        CHECK_THROWS_WITH(sample(sampler, {0.0F, 1.0F, kNan}), TMAC_CONTAINS("the logit of token 2 is NaN"));
        CHECK_THROWS_WITH(sample(sampler, {0.0F, kInfinity}), TMAC_CONTAINS("the logit of token 1 is infinite"));
        CHECK_THROWS_WITH(sample(sampler, {-kInfinity, -kInfinity}), TMAC_CONTAINS("every allowed logit is -inf"));
        CHECK_THROWS_AS(sample(sampler, {}), std::invalid_argument);
        CHECK(sampler.draws() == 0);
    }
}

TEST_CASE("sampling parameters out of range are refused by name") {
    const auto refused = [](const char* name, auto change) {
        SamplingParams params;
        change(params);
        CHECK_THROWS_WITH(Sampler(params), TMAC_CONTAINS(name));
    };
    for (const float value : {-0.5F, kNan, kInfinity, -kInfinity}) {
        refused("temperature", [&](SamplingParams& params) { params.temperature = value; });
        refused("top_p", [&](SamplingParams& params) { params.top_p = value; });
        refused("min_p", [&](SamplingParams& params) { params.min_p = value; });
        refused("repetition_penalty", [&](SamplingParams& params) { params.repetition_penalty = value; });
    }
    refused("top_p", [](SamplingParams& params) { params.top_p = 1.5F; });
    refused("top_k", [](SamplingParams& params) { params.top_k = -1; });
    refused("repetition_penalty", [](SamplingParams& params) { params.repetition_penalty = 0.0F; });
    refused("presence_penalty", [](SamplingParams& params) { params.presence_penalty = kNan; });
    refused("frequency_penalty", [](SamplingParams& params) { params.frequency_penalty = kInfinity; });
    refused("logit_bias", [](SamplingParams& params) { params.logit_bias = {{-1, 0.0F}}; });
    refused("logit_bias", [](SamplingParams& params) { params.logit_bias = {{1, kNan}}; });
    refused("logit_bias", [](SamplingParams& params) { params.logit_bias = {{1, kInfinity}}; });
}
