#pragma once

#include <cstdint>
#include <vector>

#include "ops/weight_view.h"

// The leading planes of a weight are a weight of fewer bits, in the same memory. With codes c of b bits and
// c = 2^(b-p) * top + rest, the first p planes stand for
//
//     w = s * ((a * top + r) - z)   or   w = s * (a * top + r) + o
//
// where s, z and o are the weight's own group values, of whatever kind, and a and r two numbers for all of its groups.

namespace tmac {

/// What the codes of a prefix stand for: scale * top + base in codes of the whole weight.
struct PrefixFit {
    float scale;
    float base;
};

/// The middle of the codes that share their leading planes: scale 2^(b-p), base (2^(b-p) - 1) / 2.
PrefixFit middle_fit(const WeightView& weight, int32_t planes);

/// Moments of codes and tops, weighted by the squared scales: what a least squares fit needs.
struct PrefixMoments {
    double weight = 0;
    double top = 0;
    double code = 0;
    double top_top = 0;
    double top_code = 0;
};

/// Of up to 64 rows, evenly spread; the same on every machine. All regions of the weight must be in memory.
PrefixMoments prefix_moments(const WeightView& weight, int32_t planes, int num_threads);

/// The fits with the least squared error of the weights, with one scale for all: they multiply the same input, which is
/// then encoded once for all of them. `middle`: where the moments are those of no codes or of a single one.
std::vector<PrefixFit> fit_together(const std::vector<PrefixMoments>& moments, const PrefixFit& middle);

/// How many leading planes are a weight that the selection has kernels for, ascending; of a ternary weight none.
std::vector<int32_t> prefixes_of(const WeightView& weight, const Selection& selection);

/// Whether a view is one of make_prefix().
bool is_prefix(const WeightView& weight);

/// The first `planes` planes as a weight in the same memory: a view that reads no other region. Throws
/// std::invalid_argument, naming what is possible, where that is none of prefixes_of(), and where the weight is a
/// prefix itself.
WeightView make_prefix(const WeightView& weight, int32_t planes, const PrefixFit& fit, const Selection& selection);

/// Bytes that a product with the view reads: of a prefix the leading regions alone.
int64_t bytes_read(const WeightView& weight);

}  // namespace tmac
