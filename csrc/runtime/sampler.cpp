#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "kernels/registry.h"
#include "runtime/edit_logits.h"
#include "runtime/philox.h"

namespace tmac {
namespace {

constexpr int64_t kBlock = 1024;  ///< logits whose weights are summed before they are added to those before

/// A lower temperature is 0: where logits differ at all, it leaves no other token a probability.
constexpr float kLeastTemperature = 1e-30F;

bool is_finite(float value) { return std::isfinite(value); }

/// Adds in eight lanes, which are then added in order.
double sum_of(const float* x, int64_t n) {
    double lanes[8] = {};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        for (int64_t j = 0; j < 8; ++j) {
            lanes[j] += static_cast<double>(x[i + j]);
        }
    }
    for (int64_t j = 0; i < n; ++i, ++j) {
        lanes[j] += static_cast<double>(x[i]);
    }
    double sum = 0.0;
    for (const double lane : lanes) {
        sum += lane;
    }
    return sum;
}

/// The largest logit. Throws where it is none that a token can be chosen by.
float largest_logit(const float* logits, int64_t vocab) {
    const float largest = vector_ops().max(logits, vocab);
    if (is_finite(largest)) [[likely]] {
        return largest;
    }
    for (int64_t i = 0; i < vocab; ++i) {
        TMAC_CHECK(!std::isnan(logits[i]), "the logit of token ", i, " is NaN: no token can be chosen");
        TMAC_CHECK(logits[i] <= std::numeric_limits<float>::max(), "the logit of token ", i,
                   " is infinite: no token can be chosen");
    }
    fail("no token can be chosen: every allowed logit is -inf");
}

int32_t first_equal(const float* logits, int64_t vocab, float value) {
    int64_t begin = 0;
    while (begin + kBlock < vocab && vector_ops().max(logits + begin, kBlock) < value) {
        begin += kBlock;
    }
    return static_cast<int32_t>(std::find(logits + begin, logits + vocab, value) - logits);
}

}  // namespace

Sampler::Sampler(SamplingParams params) : params_(std::move(params)) {
    TMAC_CHECK(params_.temperature >= 0.0F && is_finite(params_.temperature), "temperature must be at least 0, it is ",
               params_.temperature);
    TMAC_CHECK(params_.top_k >= 0, "top_k must be at least 0 (0: off), it is ", params_.top_k);
    TMAC_CHECK(params_.top_p >= 0.0F && params_.top_p <= 1.0F, "top_p must be from 0 to 1, it is ", params_.top_p);
    TMAC_CHECK(params_.min_p >= 0.0F && params_.min_p <= 1.0F, "min_p must be from 0 to 1, it is ", params_.min_p);
    TMAC_CHECK(params_.repetition_penalty > 0.0F && is_finite(params_.repetition_penalty),
               "repetition_penalty must be above 0, it is ", params_.repetition_penalty);
    TMAC_CHECK(is_finite(params_.presence_penalty), "presence_penalty must be a number, it is ",
               params_.presence_penalty);
    TMAC_CHECK(is_finite(params_.frequency_penalty), "frequency_penalty must be a number, it is ",
               params_.frequency_penalty);
    for (const auto& [id, bias] : params_.logit_bias) {
        TMAC_CHECK(id >= 0, "logit_bias has a token ", id);
        TMAC_CHECK(bias <= std::numeric_limits<float>::max(), "logit_bias of token ", id, " is ", bias);
    }
    inverse_temperature_ = 1.0F / params_.temperature;
}

int32_t Sampler::sample(float* logits, int64_t vocab, const int32_t* history, int64_t history_size,
                        const uint32_t* mask, int64_t prompt_size) {
    TMAC_CHECK(vocab >= 1 && vocab <= std::numeric_limits<int32_t>::max(), "a vocabulary of ", vocab, " tokens");
    TMAC_CHECK(prompt_size >= 0 && prompt_size <= history_size, "a prompt of ", prompt_size, " tokens in a history of ",
               history_size);
    add_bias(logits, vocab, params_.logit_bias);
    const Penalties penalties = {params_.repetition_penalty, params_.presence_penalty, params_.frequency_penalty};
    if (penalties.any()) {
        penalize(logits, vocab, penalties, history, history_size, prompt_size);
    }
    if (mask != nullptr) {
        TMAC_CHECK(apply_mask(logits, vocab, mask), "no token can be chosen: the mask allows none of ", vocab);
    }
    const float largest = largest_logit(logits, vocab);
    const bool greedy = params_.temperature < kLeastTemperature;
    const int32_t token = greedy ? first_equal(logits, vocab, largest) : draw(logits, vocab, largest);
    ++draws_;
    return token;
}

bool Sampler::keeps_all(int64_t vocab) const {
    return (params_.top_k == 0 || params_.top_k >= vocab) && params_.top_p >= 1.0F && params_.min_p <= 0.0F;
}

int32_t Sampler::draw(const float* logits, int64_t vocab, float largest) {
    const double unit = random_unit(params_.seed, draws_);
    if (keeps_all(vocab)) {
        return draw_from_blocks(logits, vocab, largest, unit);
    }
    collect(logits, vocab, largest);
    return draw_from_candidates(unit);
}

/// The tokens that top_k, top_p and min_p leave, with their weights, by id.
void Sampler::collect(const float* logits, int64_t vocab, float largest) {
    if (params_.top_k > 0 && params_.top_k < vocab) {
        select_top(logits, vocab, params_.top_k, candidates_);
        const double total = weigh(largest);
        if (params_.top_p < 1.0F) {
            keep_mass(candidates_, static_cast<double>(params_.top_p) * total);
        }
    } else if (params_.top_p < 1.0F) {
        collect_mass(logits, vocab, largest);
    } else {
        collect_probable(logits, vocab, largest);
    }
    std::erase_if(candidates_, [&](const Candidate& candidate) {
        return candidate.weight < params_.min_p && candidate.logit < largest;
    });
}

/// top_p of all tokens: usually few hold the mass.
void Sampler::collect_mass(const float* logits, int64_t vocab, float largest) {
    constexpr int64_t kFew = 256;
    const double mass = static_cast<double>(params_.top_p) * weigh_blocks(logits, vocab, largest);
    select_top(logits, vocab, std::min(kFew, vocab), candidates_);
    if (weigh(largest) >= mass) {
        keep_mass(candidates_, mass);
    } else {
        collect_large_mass(logits, vocab, largest, mass);
    }
}

/// The same with a histogram over the distance to the largest logit: only the tokens of one narrow bin are compared.
void Sampler::collect_large_mass(const float* logits, int64_t vocab, float largest, double mass) {
    constexpr float kBinsPerUnit = 32.0F;
    constexpr int32_t kBins = 105 * 32;  // beyond exp(-104) a weight is 0 in f32
    const float scale = inverse_temperature_ * kBinsPerUnit;
    const auto bin_of = [&](float logit) {
        return static_cast<size_t>(std::min((largest - logit) * scale, static_cast<float>(kBins - 1)));
    };
    buffer_.resize(static_cast<size_t>(vocab));
    vector_ops().exp(logits, largest, inverse_temperature_, vocab, buffer_.data());
    bin_weights_.assign(static_cast<size_t>(kBins), 0.0);
    for (int64_t i = 0; i < vocab; ++i) {
        bin_weights_[bin_of(logits[i])] += static_cast<double>(buffer_[static_cast<size_t>(i)]);
    }
    size_t edge = 0;
    for (; edge + 1 < bin_weights_.size() && bin_weights_[edge] < mass; ++edge) {
        mass -= bin_weights_[edge];
    }
    candidates_.clear();
    at_edge_.clear();
    for (int64_t i = 0; i < vocab; ++i) {
        const size_t bin = bin_of(logits[i]);
        if (bin <= edge) {
            (bin < edge ? candidates_ : at_edge_)
                .push_back(
                    {.logit = logits[i], .id = static_cast<int32_t>(i), .weight = buffer_[static_cast<size_t>(i)]});
        }
    }
    keep_mass(at_edge_, mass);
    const auto middle = static_cast<std::ptrdiff_t>(candidates_.size());
    candidates_.insert(candidates_.end(), at_edge_.begin(), at_edge_.end());
    std::inplace_merge(candidates_.begin(), candidates_.begin() + middle, candidates_.end(),
                       [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

/// What min_p may leave: a bound in the logits, a little low, spares the weights of most tokens.
void Sampler::collect_probable(const float* logits, int64_t vocab, float largest) {
    constexpr double kMargin = 1e-3;
    const double least = static_cast<double>(largest) + (std::log(static_cast<double>(params_.min_p)) - kMargin) *
                                                            static_cast<double>(params_.temperature);
    candidates_.clear();
    for (int64_t i = 0; i < vocab; ++i) {
        if (static_cast<double>(logits[i]) >= least) {
            candidates_.push_back({.logit = logits[i], .id = static_cast<int32_t>(i)});
        }
    }
    weigh(largest);
}

/// Gives the candidates their weights, exp((logit - largest) / temperature), and returns the sum.
double Sampler::weigh(float largest) {
    const auto count = static_cast<int64_t>(candidates_.size());
    buffer_.resize(candidates_.size());
    std::transform(candidates_.begin(), candidates_.end(), buffer_.begin(),
                   [](const Candidate& candidate) { return candidate.logit; });
    vector_ops().exp(buffer_.data(), largest, inverse_temperature_, count, buffer_.data());
    for (size_t i = 0; i < candidates_.size(); ++i) {
        candidates_[i].weight = buffer_[i];
    }
    return sum_of(buffer_.data(), count);
}

/// The sum of all tokens' weights, and those of the blocks.
double Sampler::weigh_blocks(const float* logits, int64_t vocab, float largest) {
    buffer_.resize(static_cast<size_t>(kBlock));
    block_weights_.clear();
    double total = 0.0;
    for (int64_t begin = 0; begin < vocab; begin += kBlock) {
        const int64_t count = std::min(kBlock, vocab - begin);
        vector_ops().exp(logits + begin, largest, inverse_temperature_, count, buffer_.data());
        block_weights_.push_back(sum_of(buffer_.data(), count));
        total += block_weights_.back();
    }
    return total;
}

int32_t Sampler::draw_from_blocks(const float* logits, int64_t vocab, float largest, double unit) {
    double rest = unit * weigh_blocks(logits, vocab, largest);
    size_t block = 0;
    size_t last = 0;  // that has a weight: where rounding leaves a rest behind the end
    for (; block < block_weights_.size() && rest >= block_weights_[block]; ++block) {
        rest -= block_weights_[block];
        last = block_weights_[block] > 0.0 ? block : last;
    }
    block = block == block_weights_.size() ? last : block;
    const int64_t begin = static_cast<int64_t>(block) * kBlock;
    const int64_t count = std::min(kBlock, vocab - begin);
    candidates_.clear();
    for (int64_t i = begin; i < begin + count; ++i) {
        candidates_.push_back({.logit = logits[i], .id = static_cast<int32_t>(i)});
    }
    const double total = weigh(largest);
    return draw_from_candidates(std::min(rest / total, 1.0));
}

int32_t Sampler::draw_from_candidates(double unit) const {
    double total = 0.0;
    for (const Candidate& candidate : candidates_) {
        total += static_cast<double>(candidate.weight);
    }
    const double target = unit * total;
    double sum = 0.0;
    int32_t chosen = candidates_.front().id;
    for (const Candidate& candidate : candidates_) {
        if (candidate.weight > 0.0F) {
            chosen = candidate.id;
        }
        sum += static_cast<double>(candidate.weight);
        if (sum > target) {
            break;
        }
    }
    return chosen;
}

}  // namespace tmac
