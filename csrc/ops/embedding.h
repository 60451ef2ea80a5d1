#pragma once

#include <cstdint>

#include "ops/tensor.h"
#include "ops/weight_view.h"

namespace tmac {

/// y[i] = row ids[i] of the weight, dequantized in the checkpoint's column order as dequantize() does and then rounded
/// to y's type. Reads the rows that it needs and no others. Throws std::invalid_argument where an id is not one of the
/// weight's rows or y has other columns than the weight.
void embedding(const WeightView& weight, const int64_t* ids, const Tensor& y, int num_threads);

}  // namespace tmac
