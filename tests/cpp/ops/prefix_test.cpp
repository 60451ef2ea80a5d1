#include "ops/prefix.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "catch.h"
#include "kernels/registry.h"
#include "ops/pack.h"
#include "ops/prepare.h"
#include "weights.h"

// The leading planes of a weight as a weight: every kernel over every layout that has prefixes, against the formula.

namespace tmac {
namespace {

Selection of_isa(Isa isa) {
    Selection some = selection();
    some.isa = name_of(isa);
    some.kernels.clear();
    some.method.clear();
    return some;
}

/// Those of specs_of(), and with real zeros.
std::vector<QuantSpec> all_specs_of(const Kernel& kernel) {
    std::vector<QuantSpec> specs = specs_of(kernel);
    const size_t count = specs.size();
    for (size_t i = 0; i < count; ++i) {
        if (specs[i].zero_point == ZeroPoint::offset && specs[i].scale_format != ScaleFormat::two_level) {
            specs.push_back(specs[i]);
            specs.back().zero_point = ZeroPoint::real;
        }
    }
    return specs;
}

/// Calls check(kernel, selection of its instruction set, spec) for every kernel here and spec that it serves.
template <class Check>
void for_each_runnable(const Check& check) {
    for (const RegistryRow& row : registry()) {
        if (selection().runnable(*row.kernel)) {
            for (const QuantSpec& spec : all_specs_of(*row.kernel)) {
                INFO(row.kernel->name << " " << to_string(spec));
                check(*row.kernel, of_isa(row.isa), spec);
            }
        }
    }
}

/// A fit unlike any that a kernel could assume.
PrefixFit odd_fit(const WeightView& view, int32_t planes) {
    const PrefixFit middle = middle_fit(view, planes);
    return {middle.scale * 1.09375F, middle.base - 0.375F};
}

int32_t code_at(const Weight& weight, int64_t row, int64_t column) {
    const int64_t row_bytes = (weight.k + 7) / 8;
    int32_t code = 0;
    for (int32_t plane = 0; plane < weight.spec.bits; ++plane) {
        const uint8_t byte = weight.planes[static_cast<size_t>((plane * weight.n + row) * row_bytes + column / 8)];
        code = 2 * code + (byte >> (column % 8) & 1);
    }
    return code;
}

/// Scale and zero (or offset) of a group, two levels multiplied out.
struct GroupNumbers {
    float scale;
    float zero;
};

GroupNumbers group_numbers(const Weight& weight, int64_t row, int64_t group) {
    const QuantSpec& spec = weight.spec;
    const auto at = static_cast<size_t>(row * num_groups(spec, weight.k) + group);
    const bool fixed = spec.zero_point == ZeroPoint::fixed;
    if (spec.scale_format != ScaleFormat::two_level) {
        return {f16_to_f32(weight.scales[at]), fixed ? spec.fixed_zero : f16_to_f32(weight.zeros[at])};
    }
    const auto super_at =
        static_cast<size_t>(row * num_super_groups(weight.k) + group * spec.group_size / kSuperColumns);
    const float offset = -(f16_to_f32(weight.super_offsets[super_at]) * static_cast<float>(weight.sub_offsets[at]));
    return {f16_to_f32(weight.super_scales[super_at]) * static_cast<float>(weight.sub_scales[at]),
            fixed ? spec.fixed_zero : offset};
}

/// One result by docs/numerics.md, class `mad`: the activations as the scalar kernel encodes them for `whole`.
float mad_reference(const Weight& weight, const PreparedInput& input, int32_t planes, const PrefixFit& fit,
                    int64_t row) {
    const int32_t centre = 1 << (planes - 1);
    const float from = fit.scale * static_cast<float>(centre) + fit.base;
    float y = 0.0F;
    for (size_t i = 0; i < input.act_groups.size(); ++i) {
        const ActGroup& group = input.act_groups[i];
        int32_t isum = 0;
        for (int32_t j = 0; j < group.k_count; ++j) {
            const int32_t top = code_at(weight, row, group.k_begin + j) >> (weight.spec.bits - planes);
            isum += (top - centre) * static_cast<int8_t>(input.act[static_cast<size_t>(group.padded_begin + j)]);
        }
        const GroupNumbers numbers = group_numbers(weight, row, group.weight_group);
        y = std::fma(static_cast<float>(isum), numbers.scale * (fit.scale * input.act_scale[i]), y);
        const float coefficient = weight.spec.zero_point == ZeroPoint::offset
                                      ? std::fma(numbers.scale, from, numbers.zero)
                                      : numbers.scale * (from - numbers.zero);
        if (weight.spec.zero_point != ZeroPoint::fixed || weight.spec.fixed_zero != from) {
            y = std::fma(coefficient, input.act_sum[i], y);
        }
    }
    return y;
}

/// The weight of the formula in double.
double exact_weight(const Weight& weight, int32_t planes, const PrefixFit& fit, int64_t row, int64_t column) {
    const int64_t size = weight.spec.group_size == -1 ? weight.k : weight.spec.group_size;
    const GroupNumbers numbers = group_numbers(weight, row, column / size);
    const double code =
        double{fit.scale} * (code_at(weight, row, column) >> (weight.spec.bits - planes)) + double{fit.base};
    return weight.spec.zero_point == ZeroPoint::offset ? numbers.scale * code + numbers.zero
                                                       : numbers.scale * (code - numbers.zero);
}

struct Exact {
    double value = 0;
    double bound = 0;               ///< how far a result may be from it
    bool dequantized_alike = true;  ///< the row's weights, too
};

/// One result in double. A rounded activation, or a sum of four, is off by half a step; 64 operations in f32 by 2^-24
/// each. `dequantized`: the row.
Exact exact_product(const Weight& weight, Method method, const PreparedInput& input, const std::vector<float>& x,
                    int32_t planes, const PrefixFit& fit, int64_t row, const float* dequantized) {
    const bool is_offset = weight.spec.zero_point == ZeroPoint::offset;
    Exact result;
    for (size_t i = 0; i < input.act_groups.size(); ++i) {
        const ActGroup& group = input.act_groups[i];
        const double step = method == Method::float_exact ? 0.0
                            : method == Method::lut       ? 2.0 * double{input.act_scale[i]}
                                                          : double{input.act_scale[i]};
        const GroupNumbers numbers = group_numbers(weight, row, group.weight_group);
        const double scale = std::fabs(double{numbers.scale});
        const double zero = std::fabs(double{numbers.zero});
        const double code = double{fit.scale} * (1 << planes) + std::fabs(double{fit.base});
        const double largest = scale * code + (is_offset ? zero : scale * zero);
        for (int32_t j = 0; j < group.k_count; ++j) {
            const int64_t column = group.k_begin + j;
            const double w = exact_weight(weight, planes, fit, row, column);
            const double a = double{x[static_cast<size_t>(column)]};
            result.value += w * a;
            result.bound += 0.5 * step * largest + 0x1p-18 * largest * std::fabs(a);
            result.dequantized_alike &= std::fabs(double{dequantized[column]} - w) <= 0x1p-21 * largest;
        }
    }
    return result;
}

}  // namespace

TEST_CASE("leading planes have the scalar kernel's bits in every kernel, and weights packed for them keep theirs",
          "[prefix]") {
    Random random(71);
    int compared = 0;
    for_each_runnable([&](const Kernel& kernel, const Selection& isa, const QuantSpec& spec) {
        const int64_t n = 70;
        const int64_t k = 164;
        const Weight weight = make_weight(random, spec, n, k);
        const PackedWeight packed = pack(weight.canonical(), {&kernel, &kernel}, 1, true);
        const WeightView whole = view_weight(packed.data(), packed.size());
        const PackedWeight usual = pack(weight.canonical(), {&kernel, &kernel}, 1);
        for (const int64_t m : {1, 6, 20}) {
            const std::vector<float> x = random.floats(m * k);
            REQUIRE(run_linear(packed, x, m, 1) == run_linear(usual, x, m, 1));
        }
        const std::vector<int32_t> possible = prefixes_of(whole, isa);
        if (spec.codebook == Codebook::uniform && spec.bits == 4) {
            REQUIRE(possible == std::vector<int32_t>{1, 2, 3});
        }
        for (const int32_t planes : possible) {
            CAPTURE(planes);
            const PrefixFit fit = odd_fit(whole, planes);
            const WeightView prefix = make_prefix(whole, planes, fit, isa);
            const Kernel& twin = scalar_twin(*prefix.kernels.decode, prefix.header.spec);
            const Kernel& wide_twin = scalar_twin(kernel, spec);
            const PackedWeight in_planes = pack(weight.canonical(), {&wide_twin, &wide_twin}, 1);
            WeightView reference =
                make_prefix(view_weight(in_planes.data(), in_planes.size()), planes, fit, of_isa(Isa::scalar));
            reference.kernels = {&twin, &twin};
            for (const int64_t m : {1, 6, 20}) {
                const std::vector<float> x = random.floats(m * k);
                REQUIRE(run_linear(prefix, x, m, 2, Phase::decode) == run_linear(reference, x, m, 1, Phase::decode));
            }
            ++compared;
        }
    });
    CHECK(compared > 100);
}

TEST_CASE("the product with leading planes is that of the formula, in bits and in double", "[prefix]") {
    Random random(72);
    const int64_t n = 9;
    const int64_t k = 300;
    for (const RegistryRow& row : registry()) {
        const Kernel& kernel = *row.kernel;
        if (row.isa != Isa::scalar || kernel.method == Method::lut_fast || kernel.method == Method::trit) {
            continue;
        }
        for (const QuantSpec& spec : all_specs_of(kernel)) {
            CAPTURE(kernel.name, to_string(spec));
            const Weight weight = make_weight(random, spec, n, k);
            const PackedWeight packed = pack(weight.canonical(), {&kernel, &kernel}, 1);
            const WeightView whole = view_weight(packed.data(), packed.size());
            for (const int32_t planes : prefixes_of(whole, of_isa(Isa::scalar))) {
                CAPTURE(planes);
                const PrefixFit fit = odd_fit(whole, planes);
                WeightView prefix = make_prefix(whole, planes, fit, of_isa(Isa::scalar));
                for (const RegistryRow& other : registry()) {  // of the whole weight's method
                    if (other.isa == Isa::scalar && other.kernel->method == kernel.method &&
                        serves(*other.kernel, prefix.header.spec)) {
                        prefix.kernels = {other.kernel, other.kernel};
                    }
                }
                std::vector<float> x = random.floats(k);
                const std::vector<float> y = run_linear(prefix, x, 1, 1, Phase::decode);
                PreparedInput input;
                prepare(kernel, whole, {x.data(), DType::f32, 1, k, k}, 0, 1, 1, input);
                std::vector<float> values(static_cast<size_t>(n * k));
                dequantize(prefix, values.data(), 1);
                for (int64_t at = 0; at < n; ++at) {
                    if (kernel.method == Method::mad) {
                        REQUIRE(y[static_cast<size_t>(at)] == mad_reference(weight, input, planes, fit, at));
                    }
                    const Exact exact =
                        exact_product(weight, kernel.method, input, x, planes, fit, at, values.data() + at * k);
                    REQUIRE(std::fabs(y[static_cast<size_t>(at)] - exact.value) <= exact.bound);
                    REQUIRE(exact.dequantized_alike);
                }
            }
        }
    }
}

TEST_CASE("a prefix that a layout does not have is refused, with those that it has", "[prefix]") {
    Random random(73);
    const auto view_of = [&](const QuantSpec& spec, const Kernel* kernel, PackedWeight& packed) {
        packed = pack(make_weight(random, spec, 20, 64).canonical(), {kernel, kernel}, 1);
        return view_weight(packed.data(), packed.size());
    };
    QuantSpec eight;
    eight.bits = 8;
    const Kernel* scalar = find_kernel("qgemm_mad_w8_scalar");
    PackedWeight packed = pack(make_weight(random, eight, 1, 8).canonical(), {scalar, scalar}, 1);
    const WeightView whole = view_of(eight, scalar, packed);
    const Selection isa = of_isa(Isa::scalar);
    CHECK(prefixes_of(whole, isa) == std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7});
    CHECK_THROWS_WITH(make_prefix(whole, 8, middle_fit(whole, 8), isa), TMAC_CONTAINS("1, 2, 3, 4, 5, 6, 7"));
    CHECK_THROWS_AS(make_prefix(whole, 0, {1, 0}, isa), std::invalid_argument);
    const WeightView prefix = make_prefix(whole, 4, middle_fit(whole, 4), isa);
    CHECK(is_prefix(prefix));
    CHECK_FALSE(is_prefix(whole));
    CHECK_THROWS_WITH(make_prefix(prefix, 2, middle_fit(prefix, 2), isa), TMAC_CONTAINS("planes of another one"));
    const Kernel* vnni = find_kernel("qgemm_mad_w8_avx512_vnni");
    if (vnni != nullptr && selection().runnable(*vnni)) {
        const WeightView nibbles = view_of(eight, vnni, packed);
        CHECK_THROWS_WITH(make_prefix(nibbles, 3, middle_fit(nibbles, 3), of_isa(Isa::avx512)),
                          TMAC_CONTAINS("packed as wide_nibbles, are no weight here; possible are: 4"));
    }
}

TEST_CASE("what planes stand for is the least squares fit of the codes, with one scale for a shared input",
          "[prefix]") {
    Random random(74);
    QuantSpec spec;
    spec.bits = 6;
    spec.group_size = 32;
    const Kernel* kernel = find_kernel("qgemm_mad_w6_scalar");
    const int64_t n = 50;
    const int64_t k = 96;
    std::vector<PrefixMoments> moments;
    std::vector<Weight> weights;
    for (int i = 0; i < 2; ++i) {
        weights.push_back(make_weight(random, spec, n, k));
        const PackedWeight packed = pack(weights.back().canonical(), {kernel, kernel}, 1);
        const WeightView view = view_weight(packed.data(), packed.size());
        moments.push_back(prefix_moments(view, 3, 1));
        CHECK(prefix_moments(view, 3, 4).top_code == moments.back().top_code);
        CHECK(middle_fit(view, 3).scale == 8.0F);
        CHECK(middle_fit(view, 3).base == 3.5F);
    }
    const std::vector<PrefixFit> fits = fit_together(moments, {8.0F, 3.5F});
    CHECK(fits[0].scale == fits[1].scale);
    const auto squared_error = [&](float scale, const std::vector<float>& bases) {
        double sum = 0;
        for (size_t i = 0; i < weights.size(); ++i) {
            for (int64_t row = 0; row < n; ++row) {
                for (int64_t column = 0; column < k; ++column) {
                    const int32_t code = code_at(weights[i], row, column);
                    const double size = double{group_numbers(weights[i], row, column / 32).scale};
                    const double error = size * (double{scale} * (code >> 3) + double{bases[i]} - code);
                    sum += error * error;
                }
            }
        }
        return sum;
    };
    const double best = squared_error(fits[0].scale, {fits[0].base, fits[1].base});
    for (const float step : {-0.01F, 0.01F}) {
        CHECK(squared_error(fits[0].scale + step, {fits[0].base, fits[1].base}) > best);
        CHECK(squared_error(fits[0].scale, {fits[0].base + step, fits[1].base}) > best);
        CHECK(squared_error(fits[0].scale, {fits[0].base, fits[1].base + step}) > best);
    }
    const std::vector<PrefixFit> nothing = fit_together({PrefixMoments{}}, {8.0F, 3.5F});
    CHECK(nothing[0].scale == 8.0F);
    CHECK(nothing[0].base == 3.5F);
}

}  // namespace tmac
