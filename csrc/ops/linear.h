#pragma once

#include <vector>

#include "ops/tensor.h"
#include "ops/weight_view.h"

namespace tmac {

/// Which of a layer's two numerics classes computes. Without a phase the number of tokens decides: `by_tokens` takes
/// the decoding class for up to kDecodeTokens of them.
enum class Phase : uint8_t { by_tokens, decode, prompt };
inline constexpr int kNumPhases = 3;
inline constexpr int64_t kDecodeTokens = 16;

/// One weight that multiplies the input: y[tokens, n] = x[tokens, k] * dequantize(weight)^T + bias.
struct Projection {
    WeightView weight;
    const float* bias;  ///< f32 [n], or null
    Tensor y;           ///< of any type
};

/// Multiplies `x` with several weights (the q, k and v of a layer, say): activations are encoded once for all that
/// want them alike, and the threads meet once. Throws std::invalid_argument where the shapes do not fit a weight.
void linear(const Tensor& x, const std::vector<Projection>& projections, Phase phase, int num_threads);

}  // namespace tmac
