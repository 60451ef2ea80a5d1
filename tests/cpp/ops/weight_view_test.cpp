#include <string>
#include <vector>

#include "catch.h"
#include "kernels/registry.h"
#include "ops/pack.h"
#include "weights.h"

// Views of packed weights whose codes lie elsewhere: the regions of a weight need not be in one buffer.

namespace tmac {
namespace {

/// A view of a weight with every region in a buffer of its exact size.
struct Scattered {
    std::vector<uint8_t> head;
    std::vector<std::vector<uint8_t>> regions;
    WeightView view;

    explicit Scattered(const PackedWeight& packed) {
        const WeightView whole = view_weight(packed.data(), packed.size());
        head.assign(packed.data(), packed.data() + whole.parts.codes);
        view = view_weight_head(head.data(), whole.parts.codes);
        for (int32_t i = 0; i < whole.parts.num_regions; ++i) {
            const bool last = i + 1 == whole.parts.num_regions;
            const int64_t bytes = last ? whole.parts.last_region : whole.parts.region_stride;
            regions.emplace_back(whole.regions[i], whole.regions[i] + bytes);
        }
        for (size_t i = 0; i < regions.size(); ++i) {
            view.regions[i] = regions[i].data();
        }
    }
};

}  // namespace

TEST_CASE("a weight whose regions lie apart gives the bits of one in one piece", "[linear]") {
    Random random(61);
    for (const RegistryRow& row : registry()) {
        const Kernel& kernel = *row.kernel;
        if (!selection().runnable(kernel)) {
            continue;
        }
        for (const QuantSpec& spec : specs_of(kernel)) {
            CAPTURE(kernel.name, to_string(spec));
            const Weight weight = make_weight(random, spec, 90, 200);
            const PackedWeight packed = pack(weight.canonical(), {&kernel, &kernel}, 1);
            const WeightView whole = view_weight(packed.data(), packed.size());
            const Scattered apart(packed);
            for (const int64_t m : {1, 5, 33}) {
                const std::vector<float> x = random.floats(m * 200);
                REQUIRE(run_linear(apart.view, x, m, 1) == run_linear(whole, x, m, 1));
            }
            std::vector<float> values(90 * 200);
            std::vector<float> wanted(values.size());
            dequantize(apart.view, values.data(), 1);
            dequantize(whole, wanted.data(), 1);
            REQUIRE(values == wanted);
        }
    }
}

TEST_CASE("the bytes before the codes are a view of their own, checked like a whole weight", "[pack]") {
    Random random(62);
    const Weight weight = make_weight(random, {}, 40, 256);
    const PackedWeight packed = pack(weight.canonical(), select_kernels({}, selection()), 1);
    const WeightView whole = view_weight(packed.data(), packed.size());
    const WeightView head = view_weight_head(packed.data(), whole.parts.codes);
    CHECK(head.regions[0] == nullptr);
    CHECK(head.parts.bytes == whole.parts.bytes);
    CHECK_THROWS_WITH(view_weight_head(packed.data(), whole.parts.codes + 1), TMAC_CONTAINS("before the codes"));
    CHECK_THROWS_WITH(view_weight(packed.data(), whole.parts.codes), TMAC_CONTAINS("the header speaks of"));
    std::vector<uint8_t> foreign(packed.data(), packed.data() + whole.parts.codes);
    foreign[0] ^= 1;
    CHECK_THROWS_AS(view_weight_head(foreign.data(), whole.parts.codes), std::invalid_argument);
}

}  // namespace tmac
