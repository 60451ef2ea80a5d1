// Every kernel that this CPU can run, through pack, view_weight and linear. Run under sanitizers, this is where a
// kernel that reads or writes past its buffers is caught.

#include "ops/linear.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch.h"
#include "kernels/registry.h"
#include "ops/pack.h"
#include "weights.h"

using namespace tmac;

namespace {

template <class Check>
void for_each_runnable(const Check& check) {
    for (const RegistryRow& row : registry()) {
        if (selection().runnable(*row.kernel)) {
            for (const QuantSpec& spec : specs_of(*row.kernel)) {
                INFO(row.kernel->name << " " << to_string(spec));
                check(*row.kernel, spec);
            }
        }
    }
}

/// The kernel over each layout that it can read: its own, and that of every kernel beside which it takes prompts.
std::vector<KernelPair> pairs_of(const Kernel& kernel, const QuantSpec& spec) {
    std::vector<KernelPair> pairs = {{&kernel, &kernel}};
    for (const RegistryRow& row : registry()) {
        const Kernel& other = *row.kernel;
        if (other.layout != kernel.layout && reads(kernel, other.layout) && serves(other, spec) &&
            selection().runnable(other)) {
            pairs.push_back({&other, &kernel});
        }
    }
    return pairs;
}

}  // namespace

TEST_CASE("every kernel gives the scalar kernel's bits", "[linear]") {
    std::set<std::string> compared;
    for_each_runnable([&](const Kernel& kernel, const QuantSpec& spec) {
        compared.insert(kernel.name);
        const Kernel& reference = scalar_twin(kernel, spec);
        Random random(9);
        for (const auto& [n, k] : {std::pair{1, 1}, std::pair{33, 31}, std::pair{70, 300}}) {
            const Weight weight = make_weight(random, spec, n, k);
            constexpr int64_t kTokens = 67;  // whole and partial blocks of every kernel
            const std::vector<float> x = random.floats(kTokens * k);
            const PackedWeight plain = pack(weight.canonical(), {&reference, &reference}, 1);
            const std::vector<float> want = run_linear(plain, x, kTokens, 1);
            for (const KernelPair& pair : pairs_of(kernel, spec)) {
                const PackedWeight packed = pack(weight.canonical(), pair, 2);
                for (const int64_t m : {1, 2, 3, 4, 5, 9, 67}) {
                    const std::vector<float> part(x.begin(), x.begin() + m * k);
                    const std::vector<float> start(want.begin(), want.begin() + m * n);
                    CAPTURE(n, k, m, name_of(pair.decode->layout));
                    CHECK(run_linear(packed, part, m, 2, Phase::prompt) == start);
                }
            }
        }
    });
    if (std::getenv("TMAC_TEST_LIST") != nullptr) {  // .ci/neon asks what an emulated CPU ran
        for (const std::string& name : compared) {
            std::printf("compared %s\n", name.c_str());
        }
    }
}

TEST_CASE("rows of several bands and tiles give the scalar kernel's bits, however threads share them", "[linear]") {
    for_each_runnable([&](const Kernel& kernel, const QuantSpec& spec) {
        const bool chosen = spec.group_size == 16 || spec.group_size == 50;
        if (!chosen || spec.zero_point != ZeroPoint::fixed || kernel.method == Method::float_exact) {
            return;
        }
        const Kernel& reference = scalar_twin(kernel, spec);
        Random random(13);
        constexpr int64_t kRows = 1030;
        constexpr int64_t kColumns = 150;
        constexpr int64_t kTokens = 17;
        const Weight weight = make_weight(random, spec, kRows, kColumns);
        const std::vector<float> x = random.floats(kTokens * kColumns);
        const PackedWeight plain = pack(weight.canonical(), {&reference, &reference}, 1);
        const std::vector<float> want = run_linear(plain, x, kTokens, 1);
        for (const KernelPair& pair : pairs_of(kernel, spec)) {
            const PackedWeight packed = pack(weight.canonical(), pair, 2);
            for (const int64_t m : {1, 5, 17}) {
                const std::vector<float> part(x.begin(), x.begin() + m * kColumns);
                const std::vector<float> start(want.begin(), want.begin() + m * kRows);
                for (const int threads : {1, 3}) {
                    CAPTURE(m, threads, name_of(pair.decode->layout));
                    CHECK(run_linear(packed, part, m, threads, Phase::prompt) == start);
                }
            }
        }
    });
}

TEST_CASE("the largest sums of integers give the scalar kernel's bits, for every kernel", "[linear]") {
    for_each_runnable([&](const Kernel& kernel, const QuantSpec& spec) {
        const Kernel& reference = scalar_twin(kernel, spec);
        Random random(12);
        for (const bool largest_code : {false, true}) {
            constexpr int64_t kTokens = 5;
            Weight weight = make_weight(random, spec, 34, 300);
            const auto largest = static_cast<uint8_t>(spec.codebook == Codebook::ternary ? 2 : (1 << spec.bits) - 1);
            const std::vector<uint8_t> codes(300, largest_code ? largest : uint8_t{0});
            for (int64_t row = 0; row < weight.n; ++row) {
                const int64_t row_bytes = (weight.k + 7) / 8;
                codes_to_planes(codes.data(), weight.k, spec.bits, weight.planes.data() + row * row_bytes,
                                weight.n * row_bytes);
            }
            for (const float value : {1.0F, -1.0F}) {
                const std::vector<float> x(static_cast<size_t>(kTokens * weight.k), value);
                const PackedWeight plain = pack(weight.canonical(), {&reference, &reference}, 1);
                for (const KernelPair& pair : pairs_of(kernel, spec)) {
                    const PackedWeight packed = pack(weight.canonical(), pair, 1);
                    CAPTURE(largest_code, value, name_of(pair.decode->layout));
                    CHECK(run_linear(packed, x, kTokens, 1, Phase::prompt) == run_linear(plain, x, kTokens, 1));
                }
            }
        }
    });
}

TEST_CASE("weights of one layout and several widths share an input", "[linear]") {
    Random random(14);
    for (const int32_t group_size : {16, 32, 50}) {
        const std::vector<float> x = random.floats(3 * 100);
        const Tensor in{const_cast<float*>(x.data()), DType::f32, 3, 100, 100};
        std::vector<PackedWeight> packed;
        for (const uint8_t bits :
             {uint8_t{4}, uint8_t{5}, uint8_t{6}, uint8_t{8}, uint8_t{6}, uint8_t{2}, uint8_t{3}}) {
            QuantSpec spec;
            spec.bits = bits;
            spec.group_size = group_size;
            spec.fixed_zero = 1.5F;
            packed.push_back(
                pack(make_weight(random, spec, 40, 100).canonical(), select_kernels(spec, selection()), 1));
        }
        std::vector<std::vector<float>> results(packed.size(), std::vector<float>(3 * 40));
        std::vector<WeightView> views;
        for (const PackedWeight& weight : packed) {
            views.push_back(view_weight(weight.data(), weight.size()));
        }
        std::vector<Projection> projections;
        for (size_t i = 0; i < packed.size(); ++i) {
            projections.push_back({views[i], nullptr, {results[i].data(), DType::f32, 3, 40, 40}});
        }
        linear(in, projections, Phase::by_tokens, 1);
        for (size_t i = 0; i < packed.size(); ++i) {
            CAPTURE(group_size, i);
            CHECK(results[i] == run_linear(packed[i], x, 3, 1));
        }
    }
}

TEST_CASE("activations that are not finite, huge or tiny give the scalar kernel's bits, for every kernel", "[linear]") {
    const float infinity = std::numeric_limits<float>::infinity();
    for_each_runnable([&](const Kernel& kernel, const QuantSpec& spec) {
        const Kernel& reference = scalar_twin(kernel, spec);
        Random random(13);
        const Weight weight = make_weight(random, spec, 34, 300);
        const PackedWeight plain = pack(weight.canonical(), {&reference, &reference}, 1);
        const PackedWeight packed = pack(weight.canonical(), {&kernel, &kernel}, 1);
        for (const float value : {std::nanf(""), infinity, -infinity, 3e38F, 1e-44F}) {
            std::vector<float> x = random.floats(2 * weight.k);
            if (value == 1e-44F) {
                std::fill(x.begin(), x.end(), 0.0F);
            }
            x[150] = x[299] = value;
            const std::vector<float> got = run_linear(packed, x, 2, 1, Phase::prompt);
            const std::vector<float> want = run_linear(plain, x, 2, 1, Phase::prompt);
            CAPTURE(value);
            CHECK(std::equal(got.begin(), got.end(), want.begin(), want.end(),
                             [](float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }));
        }
    });
}

TEST_CASE("unpacking gives back what was packed, for every kernel", "[pack]") {
    for_each_runnable([](const Kernel& kernel, const QuantSpec& spec) {
        Random random(10);
        const Weight weight = make_weight(random, spec, 37, 100);
        const PackedWeight packed = pack(weight.canonical(), {&kernel, &kernel}, 2);
        const WeightView view = view_weight(packed.data(), packed.size());
        std::vector<uint8_t> planes(weight.planes.size());
        std::vector<uint16_t> scales(weight.scales.size());
        std::vector<uint16_t> zeros(weight.zeros.size());
        const bool fixed = spec.zero_point == ZeroPoint::fixed;
        if (spec.scale_format == ScaleFormat::two_level) {
            std::vector<int8_t> sub_scales(weight.sub_scales.size());
            std::vector<int8_t> sub_offsets(weight.sub_offsets.size());
            std::vector<uint16_t> super_scales(weight.super_scales.size());
            std::vector<uint16_t> super_offsets(weight.super_offsets.size());
            unpack(view, planes.data(),
                   {sub_scales.data(), fixed ? nullptr : sub_offsets.data(), super_scales.data(),
                    fixed ? nullptr : super_offsets.data()},
                   nullptr, 2);
            CHECK(sub_scales == weight.sub_scales);
            CHECK((fixed || sub_offsets == weight.sub_offsets));
            CHECK(super_scales == weight.super_scales);
            CHECK((fixed || super_offsets == weight.super_offsets));
        } else {
            unpack(view, planes.data(), {scales.data(), fixed ? nullptr : zeros.data()}, nullptr, 2);
            CHECK(scales == weight.scales);
            CHECK((fixed || zeros == weight.zeros));
        }
        CHECK(planes == weight.planes);
    });
}

TEST_CASE("scales of two levels give the bits of the f32 scales that they stand for, for every kernel", "[linear]") {
    for_each_runnable([](const Kernel& kernel, const QuantSpec& spec) {
        if (spec.scale_format != ScaleFormat::two_level) {
            return;
        }
        Random random(14);
        const Weight weight = make_weight(random, spec, 70, 300);
        const std::vector<float> x = random.floats(5 * weight.k);
        const int64_t groups = num_groups(spec, weight.k);
        std::vector<float> scales;
        std::vector<float> offsets;
        for (int64_t i = 0; i < weight.n * groups; ++i) {
            const auto at = static_cast<size_t>(i);
            const auto super_at = static_cast<size_t>(i / groups * num_super_groups(weight.k) +
                                                      i % groups * spec.group_size / kSuperColumns);
            scales.push_back(f16_to_f32(weight.super_scales[super_at]) * static_cast<float>(weight.sub_scales[at]));
            offsets.push_back(
                -(f16_to_f32(weight.super_offsets[super_at]) * static_cast<float>(weight.sub_offsets[at])));
        }
        CanonicalWeight expanded = weight.canonical();
        expanded.spec.scale_format = ScaleFormat::f32;
        expanded.scale_type = GroupType::f32;
        expanded.scales = scales.data();
        expanded.super_scales = expanded.super_offsets = nullptr;
        if (spec.zero_point == ZeroPoint::offset) {
            expanded.zero_type = GroupType::f32;
            expanded.zeros = offsets.data();
        }
        for (const KernelPair& pair : pairs_of(kernel, spec)) {
            CAPTURE(name_of(pair.decode->layout));
            const PackedWeight two_level = pack(weight.canonical(), pair, 2);
            const PackedWeight plain = pack(expanded, pair, 2);
            for (const int64_t m : {1, 2, 5}) {
                const std::vector<float> part(x.begin(), x.begin() + m * weight.k);
                CHECK(run_linear(two_level, part, m, 2, Phase::prompt) == run_linear(plain, part, m, 2, Phase::prompt));
            }
            std::vector<float> got(static_cast<size_t>(weight.n * weight.k));
            std::vector<float> want(got.size());
            dequantize(view_weight(two_level.data(), two_level.size()), got.data(), 2);
            dequantize(view_weight(plain.data(), plain.size()), want.data(), 2);
            CHECK(got == want);
        }
    });
}

TEST_CASE("parts that do not fit scales of two levels are refused", "[pack]") {
    Random random(15);
    QuantSpec spec;
    spec.group_size = 32;
    spec.scale_format = ScaleFormat::two_level;
    spec.zero_point = ZeroPoint::offset;
    const Weight weight = make_weight(random, spec, 8, 300);
    const KernelPair kernels = select_kernels(spec, make_selection(0, "", ""));
    const auto refused = [&](auto change) {
        CanonicalWeight wrong = weight.canonical();
        change(wrong);
        CHECK_THROWS_AS(pack(wrong, kernels, 1), std::invalid_argument);
    };
    CHECK_NOTHROW(pack(weight.canonical(), kernels, 1));
    refused([](CanonicalWeight& w) { w.super_scales = nullptr; });
    refused([](CanonicalWeight& w) { w.super_offsets = nullptr; });
    refused([](CanonicalWeight& w) { w.scale_type = GroupType::f16; });
    refused([](CanonicalWeight& w) { w.zero_type = GroupType::f16; });
    refused([](CanonicalWeight& w) { w.spec.zero_point = ZeroPoint::fixed; });
    refused([](CanonicalWeight& w) { w.spec.scale_format = ScaleFormat::f16; });
}

TEST_CASE("bytes that are no packed weight are refused", "[weight_view]") {
    Random random(11);
    const Weight weight = make_weight(random, QuantSpec{}, 8, 64);
    const PackedWeight packed = pack(weight.canonical(), select_kernels(weight.spec, make_selection(0, "", "")), 1);
    std::vector<uint8_t> bytes(packed.data(), packed.data() + packed.size());
    const auto size = static_cast<int64_t>(bytes.size());
    CHECK_NOTHROW(view_weight(bytes.data(), size));
    CHECK_THROWS_AS(view_weight(bytes.data(), 0), std::invalid_argument);
    CHECK_THROWS_AS(view_weight(bytes.data(), 10), std::invalid_argument);
    CHECK_THROWS_AS(view_weight(bytes.data(), size - 64), std::invalid_argument);
    for (size_t i = 0; i < offsetof(PackedHeader, spec); ++i) {
        bytes[i] ^= 1;
        CHECK_THROWS_AS(view_weight(bytes.data(), size), std::invalid_argument);
        bytes[i] ^= 1;
    }
}

TEST_CASE("shapes that do not fit the weight are refused", "[linear]") {
    Random random(12);
    const Weight weight = make_weight(random, QuantSpec{}, 8, 64);
    const PackedWeight packed = pack(weight.canonical(), select_kernels(weight.spec, make_selection(0, "", "")), 1);
    const WeightView view = view_weight(packed.data(), packed.size());
    std::vector<float> x(200);
    std::vector<float> y(200);
    const auto call = [&](int64_t rows, int64_t in_features, int64_t out_features, int64_t out_rows) {
        linear({x.data(), DType::f32, rows, in_features, in_features},
               {{view, nullptr, {y.data(), DType::f32, out_rows, out_features, out_features}}}, Phase::by_tokens, 1);
    };
    CHECK_NOTHROW(call(1, 64, 8, 1));
    CHECK_NOTHROW(call(0, 64, 8, 0));
    CHECK_THROWS_WITH(call(1, 63, 8, 1), TMAC_CONTAINS("in_features=63"));
    CHECK_THROWS_WITH(call(1, 64, 9, 1), TMAC_CONTAINS("out_features=9"));
    CHECK_THROWS_AS(call(2, 64, 8, 1), std::invalid_argument);
}
