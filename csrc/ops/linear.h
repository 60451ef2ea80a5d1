#pragma once

#include "ops/tensor.h"
#include "ops/weight_view.h"

namespace tmac {

/// y[tokens, n] = x[tokens, k] * dequantize(weight)^T + bias. `bias` is f32 [n] or null; y has any type. Throws
/// std::invalid_argument where the shapes do not fit the weight.
void linear(const Tensor& x, const WeightView& weight, const float* bias, const Tensor& y, int num_threads);

}  // namespace tmac
