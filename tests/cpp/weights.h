#pragma once

// Random weights and what the tests of kernels do with them.

#include <vector>

#include "catch.h"
#include "core/half.h"
#include "kernels/registry.h"
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

    CanonicalWeight canonical() const {
        const bool fixed = spec.zero_point == ZeroPoint::fixed;
        return {spec,           {planes.data(), spec.bits, n, k}, scales.data(),
                GroupType::f16, fixed ? nullptr : zeros.data(),   fixed ? GroupType::none : GroupType::f16,
                nullptr};
    }
};

inline Weight make_weight(Random& random, const QuantSpec& spec, int64_t n, int64_t k) {
    Weight weight{spec, n, k, {}, {}, {}};
    const int64_t row_bytes = (k + 7) / 8;
    weight.planes.resize(static_cast<size_t>(spec.bits * n * row_bytes));
    for (int64_t row = 0; row < n; ++row) {
        const std::vector<uint8_t> codes = random.codes(k, spec.codebook == Codebook::ternary ? 3U : 1U << spec.bits);
        codes_to_planes(codes.data(), k, spec.bits, weight.planes.data() + row * row_bytes, n * row_bytes);
    }
    for (int64_t i = 0; i < n * num_groups(spec, k); ++i) {
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
