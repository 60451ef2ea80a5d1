#pragma once

#include <cstdint>
#include <vector>

namespace tmac {

/// out[i] = log of the probability of token ids[i] by logits [rows, vocab] alone: logit - log(sum of exp(logits)). The
/// same bits on every machine with any number of threads. Throws std::invalid_argument on an id outside of the
/// vocabulary, on a NaN or positive infinity and on a row that is -inf throughout.
void log_probabilities(const float* logits, int64_t rows, int64_t vocab, const int32_t* ids, float* out,
                       int num_threads);

struct TokenLogProbability {
    int32_t id;
    float value;
};

/// The `count` most probable tokens of one row, most probable first, of equal ones the lower id first; fewer where the
/// vocabulary is smaller or has tokens of no probability. Throws as log_probabilities() does.
std::vector<TokenLogProbability> top_log_probabilities(const float* logits, int64_t vocab, int64_t count);

}  // namespace tmac
