#pragma once

#include "kernels/vector_ops.h"

namespace tmac::neon {

extern const NormOps norm;
extern const ElementOps elements;
extern const SoftmaxOps softmax;
extern const FloatRowsOps float_rows;
extern const FeedbackOps feedback;
extern const AttentionOps attention;
extern const GridOps grid;

}  // namespace tmac::neon
