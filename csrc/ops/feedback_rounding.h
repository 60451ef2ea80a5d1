#pragma once

#include <cstdint>

#include "core/quant_spec.h"
#include "ops/round_to_nearest.h"

namespace tmac {

/// What rounding with feedback knows of the inputs: the Hessian is U diag(pivots) U^T.
struct FeedbackView {
    const int64_t* order;  ///< [k]: the column that is visited j-th; the j-th column of U and pivot are its
    const float* strips;   ///< U [ceil(k / kFeedbackColumns)][k][kFeedbackColumns], zero past its last column
    const float* pivots;   ///< [k], positive
    int64_t k;
};

/// Rounds the columns of `weight` f32 [n][k] one after the other; what a column loses is fed back to those after it.
/// Groups are visited as they stand, columns within a group in any order; the grid of a group is searched when it is
/// reached. A row's codes do not depend on the number of threads or the instruction set. Throws std::invalid_argument
/// where a weight is NaN or infinite, or a scale does not fit its type; UnsupportedSpec for two levels.
QuantizedRows round_with_feedback(const float* weight, int64_t n, const FeedbackView& feedback, const QuantSpec& spec,
                                  int num_threads);

}  // namespace tmac
