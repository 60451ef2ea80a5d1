// The reference kernels against the plain double sum of w * x, inside bounds that follow from their rounding.

#include <cmath>
#include <vector>

#include "catch.h"
#include "core/act_groups.h"
#include "kernels/registry.h"
#include "layout/bitplane.h"
#include "random.h"

using namespace tmac;

namespace {

struct Problem {
    QuantSpec spec;
    int64_t n, k;
    int32_t m;
    std::vector<uint8_t> codes;
    std::vector<float> scales;
    std::vector<float> zeros;  ///< zeros or offsets as f32
    std::vector<float> x;

    size_t group(int64_t row, int64_t column) const {
        const int64_t groups = num_groups(spec, k);
        return static_cast<size_t>(row * groups + (spec.group_size == -1 ? 0 : column / spec.group_size));
    }

    double weight(int64_t row, int64_t column) const {
        const double code = codes[static_cast<size_t>(row * k + column)];
        const double scale = scales[group(row, column)];
        if (spec.zero_point == ZeroPoint::fixed) {
            return (code - double{spec.fixed_zero}) * scale;
        }
        const double zero = zeros[group(row, column)];
        return spec.zero_point == ZeroPoint::offset ? code * scale + zero : (code - zero) * scale;
    }
};

Problem make_problem(Random& random, const QuantSpec& spec, int64_t n, int64_t k, int32_t m) {
    const int64_t groups = n * num_groups(spec, k);
    const uint32_t limit = spec.codebook == Codebook::ternary ? 3U : 1U << spec.bits;
    Problem problem{
        spec, n, k, m, random.codes(n * k, limit), random.floats(groups), random.floats(groups), random.floats(m * k)};
    for (float& zero : problem.zeros) {
        zero = spec.zero_point == ZeroPoint::integer ? static_cast<float>(random.below(limit)) : zero * 3.0F;
    }
    return problem;
}

struct Encoded {
    std::vector<ActGroup> groups;
    std::vector<uint8_t> act;
    std::vector<float> act_scale, act_sum;
    std::vector<int32_t> act_isum;
};

struct Run {
    Encoded input;
    std::vector<float> y;
};

/// Every token at once, through prepare and run.
Run run_kernel(const Kernel& kernel, const Problem& problem) {
    const int64_t row_bytes = (problem.k + 7) / 8;
    const int32_t k_chunk = layout_shape(Layout::planes, problem.spec.bits).k_chunk;
    const int64_t padded_k = padded_columns(problem.spec, problem.k, k_chunk);
    const int64_t act_bytes = kernel.method == Method::mad ? padded_k : padded_k * 4;
    Run result;
    Encoded& input = result.input;
    input.groups = make_act_groups(problem.spec, problem.k, k_chunk);
    const size_t count = input.groups.size() * static_cast<size_t>(problem.m);
    input.act.resize(static_cast<size_t>(act_bytes * problem.m));
    input.act_scale.resize(count);
    input.act_sum.resize(count);
    input.act_isum.resize(count);
    for (int32_t token = 0; token < problem.m; ++token) {
        const size_t first = static_cast<size_t>(token) * input.groups.size();
        kernel.prepare({&problem.spec, Layout::planes, problem.x.data() + token * problem.k, problem.k,
                        input.groups.data(), static_cast<int32_t>(input.groups.size()),
                        input.act.data() + token * act_bytes, 4, input.act_scale.data() + first,
                        input.act_sum.data() + first, input.act_isum.data() + first});
    }
    std::vector<uint8_t> planes(static_cast<size_t>(problem.spec.bits * problem.n * row_bytes));
    for (int64_t row = 0; row < problem.n; ++row) {
        codes_to_planes(problem.codes.data() + row * problem.k, problem.k, problem.spec.bits,
                        planes.data() + row * row_bytes, problem.n * row_bytes);
    }
    std::vector<uint8_t> byte_zeros(problem.zeros.begin(), problem.zeros.end());
    const bool integer = problem.spec.zero_point == ZeroPoint::integer;
    QgemmArgs args{};
    args.spec = &problem.spec;
    args.codes = planes.data();
    args.regions = regions_apart(problem.n * row_bytes);
    args.scales = problem.scales.data();
    args.scale_type = GroupType::f32;
    args.layout = Layout::planes;
    if (problem.spec.zero_point != ZeroPoint::fixed) {
        args.zeros = integer ? static_cast<const void*>(byte_zeros.data()) : problem.zeros.data();
        args.zero_type = integer ? GroupType::u8 : GroupType::f32;
    }
    args.act_groups = input.groups.data();
    args.num_act_groups = static_cast<int32_t>(input.groups.size());
    args.num_groups = static_cast<int32_t>(num_groups(problem.spec, problem.k));
    args.k = problem.k;
    args.padded_k = padded_k;
    args.act_stride = act_bytes;
    args.act = input.act.data();
    args.act_scale = input.act_scale.data();
    args.act_sum = input.act_sum.data();
    args.act_isum = input.act_isum.data();
    result.y.assign(static_cast<size_t>(problem.n * problem.m), NAN);
    args.y = result.y.data();
    args.ldy = problem.n;
    args.n = problem.n;
    args.row_end = problem.n;
    args.m = problem.m;
    kernel.run(args);
    return result;
}

/// How far rounding the activations may move one column's part of a row's sum.
///     lut: an entry is off by half a unit of 2 act_scale; a look-up of plane p counts 2^p act_scale scale, and the
///          planes' factors add up to 2^bits - 1: per four columns (2^bits - 1) |scale| act_scale / 2, an eighth of it
///          for each of four columns. The last look-up of an act group may hold one column only, so take all of it.
///     lut_fast: a lane's tree of d levels over 2^d look-ups is off by d / 2 units more, half of the lanes upwards,
///     half
///          downwards: 2^d d units of four lanes' 4 * 2^d look-ups. An act group may fill its trees with zeros: for one
///          of k columns take the 24 units of the largest tree, over k.
///     mad: q is off by half, which counts |w| act_scale / 2; with zeros the sum of q is what the zero multiplies.
double rounding(const Kernel& kernel, const Problem& problem, const ActGroup& group, int64_t row, int64_t column,
                double act_scale) {
    if (kernel.method == Method::lut || kernel.method == Method::lut_fast) {
        const double scale = std::fabs(problem.scales[problem.group(row, column)]);
        const double averages = kernel.method == Method::lut_fast ? 24.0 / group.k_count : 0.0;
        return ((1 << problem.spec.bits) - 1) * scale * act_scale * (0.5 + averages);
    }
    return kernel.method == Method::mad ? std::fabs(problem.weight(row, column)) * act_scale * 0.5 : 0.0;
}

/// f32 additions and products: k of them, each within 2^-24 of sums that the magnitudes bound.
constexpr double kFloatSlop = 0x1p-20;

/// The magnitude that f32 rounding refers to: codes and zeros count separately, because they are summed separately.
double magnitude(const Problem& problem, int64_t row, int64_t column) {
    const double scale = std::fabs(problem.scales[problem.group(row, column)]);
    const double zero = std::fabs(problem.zeros[problem.group(row, column)]);
    const double code = problem.codes[static_cast<size_t>(row * problem.k + column)];
    return (code + (1 << problem.spec.bits) + zero) * scale + zero;
}

void check_against_double(const Kernel& kernel, const Problem& problem) {
    const Run result = run_kernel(kernel, problem);
    const std::vector<ActGroup>& groups = result.input.groups;
    for (int32_t token = 0; token < problem.m; ++token) {
        for (int64_t row = 0; row < problem.n; ++row) {
            double expected = 0;
            double bound = 1e-30;
            for (size_t i = 0; i < groups.size(); ++i) {
                const double act_scale = result.input.act_scale[static_cast<size_t>(token) * groups.size() + i];
                for (int64_t column = groups[i].k_begin; column < groups[i].k_begin + groups[i].k_count; ++column) {
                    const double x = problem.x[static_cast<size_t>(token * problem.k + column)];
                    expected += problem.weight(row, column) * x;
                    bound += rounding(kernel, problem, groups[i], row, column, act_scale) * 1.001;
                    bound += magnitude(problem, row, column) * std::fabs(x) * kFloatSlop;
                }
            }
            const double got = result.y[static_cast<size_t>(token * problem.n + row)];
            CAPTURE(kernel.name, problem.n, problem.k, problem.spec.group_size, row, token, expected, got, bound);
            REQUIRE(std::fabs(got - expected) <= bound);
        }
    }
}

const Kernel& scalar_kernel(const QuantSpec& spec) { return *select_kernels(spec, make_selection(0, "", "")).decode; }

std::vector<QuantSpec> specs() {
    std::vector<QuantSpec> result;
    for (const Activation activation : {Activation::group, Activation::token, Activation::float_exact}) {
        for (const ZeroPoint zero_point : {ZeroPoint::fixed, ZeroPoint::integer, ZeroPoint::real, ZeroPoint::offset}) {
            for (int bits = 1; bits <= 8; ++bits) {
                QuantSpec spec;
                spec.bits = static_cast<uint8_t>(bits);
                spec.activation = activation;
                spec.zero_point = zero_point;
                spec.fixed_zero = bits == 1 ? 0.5F : static_cast<float>(1 << (bits - 1));
                result.push_back(spec);
                if (activation == Activation::group && bits <= 4) {
                    result.push_back(spec);
                    result.back().fast_aggregation = 1;
                }
            }
        }
        QuantSpec ternary;
        ternary.bits = 2;
        ternary.codebook = Codebook::ternary;
        ternary.activation = activation;
        ternary.fixed_zero = 1.0F;
        result.push_back(ternary);
    }
    return result;
}

}  // namespace

TEST_CASE("scalar kernels are within their rounding of the double sum", "[scalar]") {
    Random random(5);
    for (QuantSpec spec : specs()) {
        for (const int32_t group_size : {-1, 7, 32, 128, 200}) {
            spec.group_size = group_size;
            for (const int64_t k : {1, 5, 129, 300}) {
                check_against_double(scalar_kernel(spec), make_problem(random, spec, 3, k, 2));
            }
        }
    }
}

TEST_CASE("integers that fit are summed exactly", "[scalar]") {
    // With one column of 1 per act group, every table entry and every int8 activation is +-127 exactly.
    for (QuantSpec spec : specs()) {
        if (spec.fast_aggregation != 0) {
            continue;  // averages of +-127 and 0 round
        }
        spec.group_size = 4;
        spec.zero_point = ZeroPoint::fixed;
        Random random(6);
        Problem problem = make_problem(random, spec, 4, 16, 1);
        for (size_t i = 0; i < problem.x.size(); ++i) {
            problem.x[i] = i % 4 == 1 ? 1.0F : 0.0F;
        }
        problem.scales.assign(problem.scales.size(), 1.0F);
        const Run result = run_kernel(scalar_kernel(spec), problem);
        for (int64_t row = 0; row < 4; ++row) {
            double expected = 0;
            for (int64_t column = 1; column < 16; column += 4) {
                expected += problem.weight(row, column);
            }
            CAPTURE(to_string(spec));
            CHECK(result.y[static_cast<size_t>(row)] == Approx(expected).epsilon(1e-5).margin(1e-4));
        }
    }
}

TEST_CASE("averages of equal entries are exact, in trees of every size", "[scalar]") {
    // Columns 0, 4, 8, ... hold 1, so that all entries are +-127; rows of equal codes look up equal entries.
    for (const int64_t k : {32, 64, 128, 160}) {
        QuantSpec spec;
        spec.bits = 3;
        spec.fixed_zero = 4.0F;
        spec.fast_aggregation = 1;
        Random random(12);
        Problem problem = make_problem(random, spec, 8, k, 1);
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) {
            problem.x[static_cast<size_t>(i)] = i % 4 == 0 ? 1.0F : 0.0F;
            sum += problem.x[static_cast<size_t>(i)];
            for (int64_t row = 0; row < 8; ++row) {
                problem.codes[static_cast<size_t>(row * k + i)] = static_cast<uint8_t>(row);
            }
        }
        problem.scales.assign(problem.scales.size(), 1.0F);
        const Run result = run_kernel(scalar_kernel(spec), problem);
        for (int64_t row = 0; row < 8; ++row) {
            CAPTURE(k, row);
            const double expected = (static_cast<double>(row) - 4.0) * sum;
            CHECK(result.y[static_cast<size_t>(row)] == Approx(expected).epsilon(1e-6).margin(1e-4));
        }
    }
}

TEST_CASE("a token's result does not depend on its neighbours", "[scalar]") {
    Random random(7);
    for (const QuantSpec& spec : specs()) {
        const Problem both = make_problem(random, spec, 5, 150, 2);
        Problem alone = both;
        alone.m = 1;
        alone.x.assign(both.x.begin() + 150, both.x.end());
        const std::vector<float> together = run_kernel(scalar_kernel(spec), both).y;
        CHECK(run_kernel(scalar_kernel(spec), alone).y == std::vector<float>(together.begin() + 5, together.end()));
    }
}

TEST_CASE("NaN and infinity reach their token, zeros give zero", "[scalar]") {
    Random random(8);
    for (const QuantSpec& spec : specs()) {
        Problem problem = make_problem(random, spec, 2, 130, 3);
        problem.x[129] = NAN;
        problem.x[130 + 5] = INFINITY;
        std::fill(problem.x.begin() + 260, problem.x.end(), 0.0F);
        const std::vector<float> y = run_kernel(scalar_kernel(spec), problem).y;
        CAPTURE(to_string(spec));
        for (size_t row = 0; row < 2; ++row) {
            CHECK(std::isnan(y[row]));
            CHECK_FALSE(std::isfinite(y[2 + row]));
            CHECK(y[4 + row] == 0.0F);
        }
    }
}
