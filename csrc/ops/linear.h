#pragma once

#include <cstdint>
#include <vector>

#include "ops/tensor.h"
#include "ops/weight_view.h"

namespace tmac {

/// Which of a layer's two numerics classes computes. Without a phase the number of tokens decides: `by_tokens` takes
/// the decoding class for up to kDecodeTokens of them.
enum class Phase : uint8_t { by_tokens, decode, prompt };
inline constexpr int kNumPhases = 3;
inline constexpr int64_t kDecodeTokens = 16;

/// A weight that nobody quantized: [n, k] in one piece, used as it lies there.
struct FloatMatrix {
    const void* data;
    DType type;
    int64_t n;
    int64_t k;
};

/// What a product does with its result.
enum class Store : uint8_t {
    set,  ///< y = result
    add,  ///< y = y + factor * result: a residual connection; y is f32
};

/// One weight that multiplies the input: x[tokens, k] * dequantize(weight)^T + bias. The weight outlives the call.
struct Projection {
    Projection(const WeightView& weight, const float* bias_data, const Tensor& result, Store how = Store::set,
               float residual_factor = 1.0F)
        : packed(&weight), bias(bias_data), y(result), store(how), factor(residual_factor) {}
    Projection(const FloatMatrix& weight, const float* bias_data, const Tensor& result, Store how = Store::set,
               float residual_factor = 1.0F)
        : floats(&weight), bias(bias_data), y(result), store(how), factor(residual_factor) {}

    int64_t n() const { return packed != nullptr ? packed->header.n : floats->n; }
    int64_t k() const { return packed != nullptr ? packed->header.k : floats->k; }

    const WeightView* packed = nullptr;  ///< this or `floats`
    const FloatMatrix* floats = nullptr;
    const float* bias;  ///< f32 [n], or null
    Tensor y;           ///< of any type
    Store store;
    float factor;
    const float* input_norm =
        nullptr;  ///< [k]: weight of an RMS norm that this weight's input passes first; packed only
    float input_norm_eps = 0.0F;
};

/// The rows of an input, made when they are needed: a norm, a gate, the result of attention. So what makes them costs
/// no pass over memory of its own.
class InputRows {
public:
    virtual ~InputRows() = default;

    /// Row `token` as f32 [columns], in `scratch` [columns] or where it lies already. Called once per token, by any
    /// thread.
    virtual const float* row(int64_t token, float* scratch) const = 0;
};

/// Rows that lie in memory.
class TensorRows final : public InputRows {
public:
    explicit TensorRows(const Tensor& x) : x_(x) {}
    const float* row(int64_t token, float* scratch) const override;

private:
    Tensor x_;
};

/// An input and all weights that multiply it.
struct Job {
    const InputRows* input;
    int64_t tokens;
    int64_t columns;
    std::vector<Projection> projections;
};

/// Multiplies each job's input with its weights (the q, k and v of a layer, say; or one job per expert): a row is made
/// and encoded once for all weights that want it alike, and the threads meet once for everything. Throws
/// std::invalid_argument where the shapes do not fit a weight. `input_seconds`: where not null, the time that making
/// and encoding rows took is added to it.
void linear(const std::vector<Job>& jobs, Phase phase, int num_threads, double* input_seconds = nullptr);

/// The same for one input that lies in memory.
void linear(const Tensor& x, const std::vector<Projection>& projections, Phase phase, int num_threads);

}  // namespace tmac
