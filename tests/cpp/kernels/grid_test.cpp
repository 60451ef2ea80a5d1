#include <cmath>

#include "catch.h"
#include "kernels/vector_isas.h"

using namespace tmac;

namespace {

struct Group {
    std::vector<float> w;
    std::vector<float> counts;
    GridRounding rounding;
};

Group make_group(Random& random, int64_t n, bool offset) {
    Group group{random.floats(n), random.floats(n), {}};
    for (float& count : group.counts) {
        count = std::fabs(count);
    }
    const float scale = 0.1F + 0.3F * std::fabs(random.floats(1)[0]);
    group.rounding = {
        1.0F / scale,        offset ? 1.5F : 3.6F, 7.0F, offset ? 0.0F : 3.6F, scale, offset ? -1.5F * scale : 0.0F,
        offset ? 0.0F : 3.6F};
    return group;
}

/// The definition, one column at a time in f64; codes in f32, as they are stored.
GridSums sums_of(const Group& group) {
    const GridRounding& r = group.rounding;
    GridSums sums;
    for (size_t j = 0; j < group.w.size(); ++j) {
        const float code = std::nearbyint(std::fmin(std::fmax(group.w[j] * r.inverse + r.shift, 0.0F), r.top));
        const double off = double{(code - r.subtract) * r.scale + r.add} - double{group.w[j]};
        const double c = double{code - r.from};
        sums.error += off * off * double{group.counts[j]};
        sums.c += c * double{group.counts[j]};
        sums.cc += c * c * double{group.counts[j]};
        sums.cw += c * double{group.w[j]} * double{group.counts[j]};
    }
    return sums;
}

}  // namespace

TEST_CASE("sums of a grid", "[grid]") {
    Random random(5);
    for (const int64_t n : {16, 32, 48, 64, 80, 256, 1008}) {
        for (const bool offset : {false, true}) {
            const Group group = make_group(random, n, offset);
            const GridSums expected = sums_of(group);
            const auto near = [n](double found, double exact, double magnitude) {
                // a handful of roundings of every term, and one for each doubling of the number of terms
                return std::fabs(found - exact) <= 16 * 0x1p-24 * static_cast<double>(n) * magnitude;
            };
            const GridSums* first = nullptr;
            std::vector<GridSums> all;
            all.reserve(4);
            for (const VectorOps* ops : runnable_vector_ops()) {
                CAPTURE(n, offset, ops->name);
                all.push_back(ops->grid_sums(group.rounding, group.w.data(), group.counts.data(), n));
                const GridSums& found = all.back();
                CHECK(near(found.error, expected.error, 20.0));
                CHECK(near(found.c, expected.c, 10.0));
                CHECK(near(found.cc, expected.cc, 50.0));
                CHECK(near(found.cw, expected.cw, 10.0));
                const float error = ops->grid_error(group.rounding, group.w.data(), group.counts.data(), n);
                CHECK(near(double{error}, expected.error, 20.0));
                if (first == nullptr) {
                    first = &all.front();
                }
                CHECK(found.error == first->error);
                CHECK(found.c == first->c);
                CHECK(found.cc == first->cc);
                CHECK(found.cw == first->cw);
                const VectorOps& scalar = *runnable_vector_ops().front();
                CHECK(error == scalar.grid_error(group.rounding, group.w.data(), group.counts.data(), n));
            }
        }
    }
}
