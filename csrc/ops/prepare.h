#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "ops/tensor.h"
#include "ops/weight_view.h"

namespace tmac {

/// Some tokens' activations, encoded for the kernel of one weight and for every other weight that reads the same
/// input with the same act groups. Buffers grow and are used again.
struct PreparedInput {
    std::vector<ActGroup> act_groups;
    int64_t padded_k = 0;
    int64_t act_bytes = 0;             ///< per token
    int32_t token_block = 0;           ///< of the kernel
    std::vector<uint8_t> act;          ///< [tokens][act_bytes]
    std::vector<float> act_scale;      ///< [tokens][act_groups]
    std::vector<float> act_sum;        ///< [tokens][act_groups]
    std::vector<int32_t> act_isum;     ///< [tokens][act_groups]
    std::vector<uint8_t> scaled_down;  ///< [tokens]: computed from x * 2^-64, because a sum of finite values overflowed
};

inline constexpr float kHugeActScale = 0x1p56F;  ///< a token with such an act_scale is multiplied as x * kScaleDown
inline constexpr float kScaleDown = 0x1p-64F;
inline constexpr float kScaleUp = 0x1p64F;

/// Tokens that are encoded and multiplied together: bounds the encoded activations to a few MiB at any batch.
int64_t tokens_at_once(const Kernel& kernel);

/// Whether one encoding of an input serves both kernels over their weights.
bool same_encoding(const Kernel& kernel, const WeightView& weight, const Kernel& other_kernel, const WeightView& other);

/// Makes room for `tokens` tokens, encoded for one of the weight's kernels.
void reserve(const Kernel& kernel, const WeightView& weight, int32_t tokens, PreparedInput& out);

/// Encodes one token, `x` f32 [k] in the checkpoint's order, as number `token` of those that reserve() made room for.
/// Several threads may encode tokens of the same input. `permuted` is a buffer that grows.
void prepare_token(const Kernel& kernel, const WeightView& weight, const float* x, int32_t token,
                   std::vector<float>& permuted, PreparedInput& out);

/// Encodes rows [first, first + tokens) of `x`, whose columns are in the checkpoint's order, for one of the weight's
/// kernels.
void prepare(const Kernel& kernel, const WeightView& weight, const Tensor& x, int64_t first, int32_t tokens,
             int num_threads, PreparedInput& out);

}  // namespace tmac
