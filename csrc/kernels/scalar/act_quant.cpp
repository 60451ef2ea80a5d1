#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// int8 activations of the class `mad`, and the plain copy of the class `float` (docs/numerics.md).

namespace tmac::scalar {
namespace {

constexpr float kLargestInt8 = 127.0F;
constexpr float kTokenFloor = 1e-5F;  ///< BitNet's clamp of a token's largest activation

struct Range {
    float largest;
    bool finite;
};

Range range_of(const float* x, int64_t count) {
    Range range{0.0F, true};
    for (int64_t i = 0; i < count; ++i) {
        const float magnitude = std::fabs(x[i]);
        range.finite = range.finite && std::isfinite(magnitude);
        range.largest = magnitude > range.largest ? magnitude : range.largest;
    }
    return range;
}

void quantize_group(const PrepareArgs& args, int32_t index, const Range& range) {
    const ActGroup& group = args.act_groups[index];
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin;
    std::memset(q, 0, static_cast<size_t>(group.padded_count));
    args.act_isum[index] = 0;
    if (!range.finite) {
        args.act_scale[index] = args.act_sum[index] = NAN;
        return;
    }
    float inverse = range.largest > 0.0F ? kLargestInt8 / range.largest : 0.0F;
    inverse = std::isfinite(inverse) ? inverse : 0.0F;
    int32_t sum = 0;
    for (int32_t i = 0; i < group.k_count; ++i) {
        q[i] = static_cast<int8_t>(std::nearbyint(args.x[group.k_begin + i] * inverse));
        sum += q[i];
    }
    const float act_scale = inverse > 0.0F ? range.largest / kLargestInt8 : 0.0F;
    args.act_isum[index] = sum;
    args.act_scale[index] = act_scale;
    args.act_sum[index] = act_scale * static_cast<float>(sum);
}

}  // namespace

void act_quant(const PrepareArgs& args) {
    const bool per_token = args.spec->activation == Activation::token;
    Range range{};
    if (per_token) {
        range = range_of(args.x, args.k);
        range.largest = range.largest > kTokenFloor ? range.largest : kTokenFloor;
    }
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        const ActGroup& group = args.act_groups[index];
        quantize_group(args, index, per_token ? range : range_of(args.x + group.k_begin, group.k_count));
    }
}

void act_copy(const PrepareArgs& args) { std::memcpy(args.act, args.x, static_cast<size_t>(args.k) * sizeof(float)); }

}  // namespace tmac::scalar
