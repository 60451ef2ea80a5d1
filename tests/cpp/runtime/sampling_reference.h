#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "runtime/sampler.h"

// Sampling as one would write it down: everything is sorted, in double.

/// Each token's probability, 0 where it is filtered out: transformers' warpers in their order.
inline std::vector<double> reference_probabilities(const std::vector<float>& logits,
                                                   const tmac::SamplingParams& params) {
    const size_t vocab = logits.size();
    std::vector<size_t> order(vocab);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    const double largest = static_cast<double>(logits[order[0]]);
    size_t count = vocab;
    if (params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab) {
        const float least = logits[order[static_cast<size_t>(params.top_k) - 1]];
        count = static_cast<size_t>(params.top_k);
        while (count < vocab && logits[order[count]] == least) {
            ++count;
        }
    }
    std::vector<double> weights(vocab, 0.0);
    double total = 0.0;
    for (size_t i = 0; i < count; ++i) {
        const double logit = static_cast<double>(logits[order[i]]);
        weights[order[i]] = std::exp((logit - largest) / static_cast<double>(params.temperature));
        total += weights[order[i]];
    }
    if (params.top_p < 1.0F) {
        double before = 0.0;
        for (size_t i = 0; i < count; ++i) {
            const double weight = weights[order[i]];
            if (i > 0 && before >= static_cast<double>(params.top_p) * total) {
                weights[order[i]] = 0.0;
            }
            before += weight;
        }
    }
    for (double& weight : weights) {
        weight = weight < static_cast<double>(params.min_p) ? 0.0 : weight;
    }
    const double kept = std::accumulate(weights.begin(), weights.end(), 0.0);
    for (double& weight : weights) {
        weight /= kept;
    }
    return weights;
}

/// The token whose interval, in order of ids, holds `unit`, and how far `unit` is from the interval's nearer end.
struct ReferenceDraw {
    int32_t token;
    double distance;
};

inline ReferenceDraw reference_draw(const std::vector<double>& probabilities, double unit) {
    double sum = 0.0;
    for (size_t i = 0; i < probabilities.size(); ++i) {
        if (sum + probabilities[i] > unit) {
            return {static_cast<int32_t>(i), std::min(unit - sum, sum + probabilities[i] - unit)};
        }
        sum += probabilities[i];
    }
    return {static_cast<int32_t>(probabilities.size()) - 1, 0.0};
}
