#include <cstdint>
#include <vector>

#include "catch.h"
#include "kernels/registry.h"
#include "ops/pack.h"
#include "ops/prefix.h"
#include "weights.h"

// Leading planes of weights whose group values are stored in other types: the same numbers give the same bits.

namespace tmac {
namespace {

/// A weight with real zeros that are integers, so that every type of zeros can hold them.
struct IntegerZeros {
    Weight weight;
    std::vector<uint8_t> bytes;
    std::vector<float> zeros;
    std::vector<float> scales;

    IntegerZeros(Random& random, const QuantSpec& spec, int64_t n, int64_t k)
        : weight(make_weight(random, spec, n, k)) {
        for (size_t i = 0; i < weight.zeros.size(); ++i) {
            bytes.push_back(static_cast<uint8_t>(random.below(1U << spec.bits)));
            zeros.push_back(static_cast<float>(bytes.back()));
            weight.zeros[i] = f32_to_f16(zeros.back());
            scales.push_back(f16_to_f32(weight.scales[i]));
        }
    }

    CanonicalWeight with(GroupType zero_type, GroupType scale_type) const {
        CanonicalWeight canonical = weight.canonical();
        canonical.scale_type = scale_type;
        canonical.zero_type = zero_type;
        if (scale_type == GroupType::f32) {
            canonical.spec.scale_format = ScaleFormat::f32;
            canonical.scales = scales.data();
        }
        if (zero_type == GroupType::u8) {
            canonical.spec.zero_point = ZeroPoint::integer;
            canonical.zeros = bytes.data();
        } else if (zero_type == GroupType::f32) {
            canonical.zeros = zeros.data();
        }
        return canonical;
    }
};

}  // namespace

TEST_CASE("leading planes of integer and real zeros in every type give the same bits", "[prefix]") {
    Random random(75);
    int compared = 0;
    for (const RegistryRow& row : registry()) {
        const Kernel& kernel = *row.kernel;
        if (!selection().runnable(kernel) || kernel.codebook != Codebook::uniform) {
            continue;
        }
        Selection isa = selection();
        isa.isa = name_of(row.isa);
        isa.kernels.clear();
        isa.method.clear();
        for (const int32_t group_size : {32, 64, -1}) {
            QuantSpec spec = specs_of(kernel).front();
            spec.zero_point = ZeroPoint::real;
            spec.scale_format = ScaleFormat::f16;
            spec.group_size = group_size;
            CAPTURE(kernel.name, to_string(spec));
            const IntegerZeros values(random, spec, 37, 140);
            const std::vector<float> x = random.floats(3 * 140);
            const auto product = [&](GroupType zero_type, GroupType scale_type, int32_t planes) {
                const PackedWeight packed = pack(values.with(zero_type, scale_type), {&kernel, &kernel}, 1, true);
                const WeightView whole = view_weight(packed.data(), packed.size());
                return run_linear(make_prefix(whole, planes, {1.5F, 0.25F}, isa), x, 3, 1, Phase::decode);
            };
            const PackedWeight packed = pack(values.with(GroupType::f16, GroupType::f16), {&kernel, &kernel}, 1, true);
            for (const int32_t planes : prefixes_of(view_weight(packed.data(), packed.size()), isa)) {
                const std::vector<float> wanted = product(GroupType::f16, GroupType::f16, planes);
                REQUIRE(product(GroupType::u8, GroupType::f16, planes) == wanted);
                REQUIRE(product(GroupType::f32, GroupType::f16, planes) == wanted);
                REQUIRE(product(GroupType::f32, GroupType::f32, planes) == wanted);
                ++compared;
            }
        }
    }
    CHECK(compared > 100);
}

}  // namespace tmac
