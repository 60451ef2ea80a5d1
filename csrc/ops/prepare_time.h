#pragma once

#include "ops/tensor.h"
#include "ops/weight_view.h"

namespace tmac {

/// Seconds per call of encoding all rows of `x` for `weight` as linear() does without a phase, and nothing else of it,
/// the mean of `repeats` calls into the same buffers: the part of a benchmark's time that layers with the same input
/// can share. Throws std::invalid_argument where x does not fit the weight or there is nothing to time.
double prepare_seconds(const WeightView& weight, const Tensor& x, int repeats, int num_threads);

}  // namespace tmac
