#include "runtime/log_probabilities.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "runtime/top_logits.h"

namespace tmac {
namespace {

/// log(x) of a normal x, to an error of some 2^-52, by additions, products and divisions alone: the C library's may
/// differ between systems. x = m * 2^e with m from sqrt(1/2) to sqrt(2), log(m) = 2 atanh((m - 1) / (m + 1)).
double log_of(double x) {
    int exponent = 0;
    double mantissa = std::frexp(x, &exponent);
    if (mantissa < 0.70710678118654752) {
        mantissa *= 2.0;
        --exponent;
    }
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    const double square = s * s;  // at most 0.03: the terms beyond s^23 are less than 2^-60
    double series = 0.0;
    for (int power = 23; power >= 3; power -= 2) {
        series = (series + 1.0 / power) * square;
    }
    constexpr double kLog2 = 0.69314718055994531;
    return exponent * kLog2 + 2.0 * (s + s * series);
}

/// log(sum of exp(logits)).
double log_sum(const float* logits, int64_t vocab, int64_t row) {
    const float largest = vector_ops().max(logits, vocab);
    TMAC_CHECK(!std::isnan(largest), "there is a NaN among the logits of row ", row);
    TMAC_CHECK(std::isfinite(largest), "the largest logit of row ", row, " is ", largest);
    return static_cast<double>(largest) + log_of(vector_ops().sum_exp(logits, largest, vocab));
}

void check_vocab(int64_t vocab) {
    TMAC_CHECK(vocab >= 1 && vocab <= std::numeric_limits<int32_t>::max(), "a vocabulary of ", vocab, " tokens");
}

}  // namespace

void log_probabilities(const float* logits, int64_t rows, int64_t vocab, const int32_t* ids, float* out,
                       int num_threads) {
    check_vocab(vocab);
    TMAC_CHECK(rows >= 0, rows, " rows of logits");
    for (int64_t row = 0; row < rows; ++row) {
        TMAC_CHECK(ids[row] >= 0 && ids[row] < vocab, "token ", ids[row], " of row ", row, ": the vocabulary has ",
                   vocab, " tokens");
    }
    parallel_for(rows, 1, num_threads, [&](Range range) {
        for (int64_t row = range.begin; row < range.end; ++row) {
            const float* x = logits + row * vocab;
            out[row] = static_cast<float>(static_cast<double>(x[ids[row]]) - log_sum(x, vocab, row));
        }
    });
}

std::vector<TokenLogProbability> top_log_probabilities(const float* logits, int64_t vocab, int64_t count) {
    check_vocab(vocab);
    TMAC_CHECK(count >= 0, "the ", count, " most probable tokens");
    const double log_total = log_sum(logits, vocab, 0);
    std::vector<TokenLogProbability> result;
    if (count == 0) {
        return result;
    }
    std::vector<Candidate> top;
    select_top(logits, vocab, std::min(count, vocab), top);
    std::sort(top.begin(), top.end(), precedes);
    top.resize(std::min(top.size(), static_cast<size_t>(count)));
    for (const Candidate& candidate : top) {
        result.push_back(
            {.id = candidate.id, .value = static_cast<float>(static_cast<double>(candidate.logit) - log_total)});
    }
    return result;
}

}  // namespace tmac
