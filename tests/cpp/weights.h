#pragma once

// Random weights and what the tests of kernels do with them.

#include <vector>

#include "catch.h"
#include "core/half.h"
#include "kernels/registry.h"
#include "ops/dequantize.h"
#include "ops/linear.h"
#include "ops/pack.h"
#include "random.h"

namespace tmac {

struct Weight {
    QuantSpec spec;
    int64_t n, k;
    std::vector<uint8_t> planes;
    std::vector<uint16_t> scales;
    std::vector<uint16_t> zeros;
    std::vector<int8_t> sub_scales;  ///< the two-level ones
    std::vector<int8_t> sub_offsets;
    std::vector<uint16_t> super_scales;
    std::vector<uint16_t> super_offsets;

    CanonicalWeight canonical() const {
        const bool fixed = spec.zero_point == ZeroPoint::fixed;
        const bool two_level = spec.scale_format == ScaleFormat::two_level;
        const void* all_scales = two_level ? static_cast<const void*>(sub_scales.data()) : scales.data();
        const void* all_zeros = two_level ? static_cast<const void*>(sub_offsets.data()) : zeros.data();
        const GroupType type = two_level ? GroupType::i8 : GroupType::f16;
        return {spec,
                {planes.data(), spec.bits, n, k},
                all_scales,
                type,
                fixed ? nullptr : all_zeros,
                fixed ? GroupType::none : type,
                nullptr,
                two_level ? super_scales.data() : nullptr,
                two_level && !fixed ? super_offsets.data() : nullptr};
    }
};

inline Weight make_weight(Random& random, const QuantSpec& spec, int64_t n, int64_t k) {
    Weight weight{spec, n, k, {}, {}, {}, {}, {}, {}, {}};
    const int64_t row_bytes = (k + 7) / 8;
    weight.planes.resize(static_cast<size_t>(spec.bits * n * row_bytes));
    for (int64_t row = 0; row < n; ++row) {
        const std::vector<uint8_t> codes = random.codes(k, spec.codebook == Codebook::ternary ? 3U : 1U << spec.bits);
        codes_to_planes(codes.data(), k, spec.bits, weight.planes.data() + row * row_bytes, n * row_bytes);
    }
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    for (int64_t i = 0; i < (two_level ? n * num_super_groups(k) : 0); ++i) {
        weight.super_scales.push_back(f32_to_f16(random.signed_unit() * 0x1p-5F));
        weight.super_offsets.push_back(f32_to_f16(random.signed_unit() * 0x1p-5F));
    }
    for (int64_t i = 0; i < n * num_groups(spec, k); ++i) {
        if (two_level) {
            weight.sub_scales.push_back(static_cast<int8_t>(random.below(256)));
            weight.sub_offsets.push_back(static_cast<int8_t>(random.below(256)));
            continue;
        }
        weight.scales.push_back(f32_to_f16(random.signed_unit()));
        weight.zeros.push_back(f32_to_f16(random.signed_unit() * 4.0F));
    }
    return weight;
}

/// y [m, n] in a buffer of its exact size.
inline std::vector<float> run_linear(const WeightView& view, const std::vector<float>& x, int64_t m, int num_threads,
                                     Phase phase = Phase::by_tokens) {
    std::vector<float> input = x;
    std::vector<float> y(static_cast<size_t>(m * view.header.n), -1.0F);
    linear({input.data(), DType::f32, m, view.header.k, view.header.k},
           {{view, nullptr, {y.data(), DType::f32, m, view.header.n, view.header.n}}}, phase, num_threads);
    return y;
}

inline std::vector<float> run_linear(const PackedWeight& packed, const std::vector<float>& x, int64_t m,
                                     int num_threads, Phase phase = Phase::by_tokens) {
    return run_linear(view_weight(packed.data(), packed.size()), x, m, num_threads, phase);
}

/// Specs that a kernel serves.
inline std::vector<QuantSpec> specs_of(const Kernel& kernel) {
    std::vector<QuantSpec> result;
    for (const Activation activation : {Activation::group, Activation::token, Activation::float_exact}) {
        for (const ZeroPoint zero_point : {ZeroPoint::fixed, ZeroPoint::offset}) {
            for (const int32_t group_size : {16, 32, 50, 128, -1}) {
                QuantSpec spec;
                spec.bits = kernel.bits;
                spec.codebook = kernel.codebook;
                spec.activation = activation;
                spec.fast_aggregation = kernel.method == Method::lut_fast ? 1 : 0;
                spec.zero_point = zero_point;
                spec.group_size = group_size;
                spec.fixed_zero = kernel.codebook == Codebook::ternary ? 1.0F : 1.5F;
                if (serves(kernel, spec) && (kernel.codebook == Codebook::uniform || zero_point == ZeroPoint::fixed)) {
                    result.push_back(spec);
                    if (group_size == 32) {
                        spec.scale_format = ScaleFormat::two_level;
                        result.push_back(spec);
                        spec.group_size = 16;
                        result.push_back(spec);
                    }
                }
            }
        }
    }
    return result;
}

/// The scalar kernel of the same class.
inline const Kernel& scalar_twin(const Kernel& kernel, const QuantSpec& spec) {
    for (const RegistryRow& row : registry()) {
        if (row.isa == Isa::scalar && row.kernel->method == kernel.method && serves(*row.kernel, spec)) {
            return *row.kernel;
        }
    }
    FAIL("no scalar kernel beside " << kernel.name);
    return kernel;
}

}  // namespace tmac
