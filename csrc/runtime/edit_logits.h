#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace tmac {

/// logits[id] += bias. Throws std::invalid_argument where an id is not one of `vocab`.
void add_bias(float* logits, int64_t vocab, const std::vector<std::pair<int32_t, float>>& bias);

struct Penalties {
    float repetition;  ///< divides positive logits of tokens of the history and multiplies negative ones (CTRL paper)
    float presence;    ///< subtracted for tokens that were generated
    float frequency;   ///< and this for each time

    bool any() const { return repetition != 1.0F || presence != 0.0F || frequency != 0.0F; }
};

/// Tokens of the history that are not in the vocabulary are passed over. Throws std::invalid_argument on a negative
/// one.
void penalize(float* logits, int64_t vocab, const Penalties& penalties, const int32_t* history, int64_t history_size,
              int64_t prompt_size);

/// Sets the logits of tokens that `mask` (bit i % 32 of word i / 32) does not allow to -inf. False if it allows none.
bool apply_mask(float* logits, int64_t vocab, const uint32_t* mask);

}  // namespace tmac
