#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// int8 activations of the class `mad`, and the plain copy of the class `float` (docs/numerics.md).

namespace tmac::scalar {
namespace {

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
    if (!range.finite) {
        refuse_int8(args, index);
        return;
    }
    const ActScale scale = act_scale_of(range.largest);
    auto* q = static_cast<int8_t*>(args.act) + group.padded_begin;
    std::memset(q, 0, static_cast<size_t>(group.padded_count));
    int32_t sum = 0;
    for (int32_t i = 0; i < group.k_count; ++i) {
        q[i] = static_cast<int8_t>(std::nearbyint(args.x[group.k_begin + i] * scale.inverse));
        sum += q[i];
    }
    finish_int8(args, index, sum, scale.scale);
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
