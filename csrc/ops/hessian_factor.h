#pragma once

#include <cstdint>

namespace tmac {

/// Factors a damped, reordered Hessian as U diag(pivots) U^T, in double precision: element (i, j) of what is factored
/// is hessian[order[i]][order[j]], plus extra[order[i]] on the diagonal.
///
/// Writes U, upper triangular with ones on its diagonal, as strips f32 [ceil(k / kFeedbackColumns)][k]
/// [kFeedbackColumns], zero past the last column, and pivots f32 [k]. Returns false, with both unfinished, where a
/// pivot is not above `least`. The bits do not depend on the number of threads or the instruction set.
bool factor_hessian(const float* hessian, const int64_t* order, const double* extra, int64_t k, double least,
                    float* strips, float* pivots, int num_threads);

}  // namespace tmac
