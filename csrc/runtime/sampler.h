#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/top_logits.h"

namespace tmac {

/// How the next token is chosen. What a value does is said in docs/runtime.md; the defaults change nothing.
struct SamplingParams {
    float temperature = 1.0F;  ///< 0: the most probable token, whatever else stands here about probabilities
    int32_t top_k = 0;         ///< 0: off
    float top_p = 1.0F;
    float min_p = 0.0F;
    float repetition_penalty = 1.0F;
    float presence_penalty = 0.0F;
    float frequency_penalty = 0.0F;
    uint64_t seed = 0;
    std::vector<std::pair<int32_t, float>> logit_bias;  ///< token and what is added to its logit; -inf forbids it
};

/// Chooses the tokens of one sequence. The same seed, history and logits give the same tokens on every machine; the
/// random number of a token depends on the seed and on how many tokens came before it, and on nothing else.
class Sampler {
public:
    /// Throws std::invalid_argument where a value is out of range.
    explicit Sampler(SamplingParams params);

    /// Chooses a token and counts it. `logits` [vocab] are changed. `history` are the tokens before, of which the first
    /// `prompt_size` are the prompt: presence and frequency penalties do not count those. Of `mask`, null or
    /// ceil(vocab / 32) words, bit i % 32 of word i / 32 says whether token i is allowed.
    ///
    /// Throws std::invalid_argument where an allowed logit is NaN or infinite, where no token is allowed, where a
    /// biased token is not in the vocabulary and where the history has a negative id (others that are not in the
    /// vocabulary are passed over).
    int32_t sample(float* logits, int64_t vocab, const int32_t* history, int64_t history_size,
                   const uint32_t* mask = nullptr, int64_t prompt_size = 0);

    const SamplingParams& params() const { return params_; }

    /// Tokens chosen so far; setting it goes back to the random number of that token.
    uint64_t draws() const { return draws_; }
    void set_draws(uint64_t draws) { draws_ = draws; }

private:
    bool keeps_all(int64_t vocab) const;
    int32_t draw(const float* logits, int64_t vocab, float largest);
    void collect(const float* logits, int64_t vocab, float largest);
    void collect_mass(const float* logits, int64_t vocab, float largest);
    void collect_large_mass(const float* logits, int64_t vocab, float largest, double mass);
    void collect_probable(const float* logits, int64_t vocab, float largest);
    double weigh(float largest);
    double weigh_blocks(const float* logits, int64_t vocab, float largest);
    int32_t draw_from_blocks(const float* logits, int64_t vocab, float largest, double unit);
    int32_t draw_from_candidates(double unit) const;

    SamplingParams params_;
    float inverse_temperature_;
    uint64_t draws_ = 0;
    std::vector<Candidate> candidates_;
    std::vector<Candidate> at_edge_;
    std::vector<double> block_weights_;
    std::vector<double> bin_weights_;
    std::vector<float> buffer_;
};

}  // namespace tmac
