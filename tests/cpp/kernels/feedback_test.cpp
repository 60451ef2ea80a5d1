// Rounding with feedback and what it needs: every instruction set gives the bits of plain numbers.

#include <cmath>

#include "catch.h"
#include "kernels/vector_isas.h"
#include "kernels/vector_ops.h"
#include "random.h"

using namespace tmac;

namespace {

constexpr size_t kRows = kFeedbackRows;

TileGrid make_grid(Random& random) {
    TileGrid grid{};
    for (size_t row = 0; row < kRows; ++row) {
        grid.scale[row] = row == 7 ? 0.0F : 0.1F + 0.05F * random.signed_unit();
        grid.inverse[row] = row == 7 ? 0.0F : 1.0F / grid.scale[row];
        grid.shift[row] = grid.subtract[row] = 3.5F;
        grid.add[row] = 0.01F * random.signed_unit();
    }
    return grid;
}

}  // namespace

TEST_CASE("errors are fed back column by column", "[feedback]") {
    Random random(1);
    for (const int32_t columns : {1, 3, 4, 7, 8}) {
        for (const int64_t count : {0, 1, 5, 130}) {
            const std::vector<float> errors = random.floats(count * kFeedbackRows);
            const std::vector<float> feedback = random.floats(count * kFeedbackColumns);
            const std::vector<float> before = random.floats(columns * kFeedbackRows);
            std::vector<float> expected = before;
            for (size_t c = 0; c < static_cast<size_t>(columns); ++c) {
                for (size_t row = 0; row < kRows; ++row) {
                    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
                        float& target = expected[c * kRows + row];
                        target = std::fma(errors[i * kRows + row], feedback[i * kFeedbackColumns + c], target);
                    }
                }
            }
            for (const VectorOps* ops : runnable_vector_ops()) {
                CAPTURE(ops->name, columns, count);
                std::vector<float> targets = before;
                ops->feed_back(errors.data(), count, feedback.data(), targets.data(), columns);
                CHECK(first_difference(targets, expected) == -1);
            }
        }
    }
}

TEST_CASE("columns are rounded and grids searched with the same bits everywhere", "[feedback]") {
    Random random(2);
    const TileGrid grid = make_grid(random);
    for (const ZeroPoint zero_point : {ZeroPoint::fixed, ZeroPoint::integer, ZeroPoint::real, ZeroPoint::offset}) {
        const std::vector<float> weights = random.floats(8 * kFeedbackRows);
        const std::vector<float> feedback = random.floats(8 * kFeedbackColumns);
        const std::vector<float> importance = {1.0F, 0.5F, 0.0F, 3.0F, 1.0F, 2.0F, 0.1F, 1.0F};
        std::vector<float> expected;
        for (const VectorOps* ops : runnable_vector_ops()) {
            CAPTURE(ops->name);
            std::vector<float> found = weights;  // targets, errors, codes, scales, zeros
            found.insert(found.end(), weights.begin(), weights.end());
            found.resize(3 * weights.size() + 2 * kRows);
            float* codes = found.data() + 2 * weights.size();
            ops->round_columns(grid, 7.0F, feedback.data(), 8, found.data(), found.data() + weights.size(), codes);
            const GridSearchArgs args{
                weights.data(), importance.data(), 8, 7.0F, 4.0F, zero_point, true, 5, 0.5F, 3, 0.1F, 3};
            float* scales = found.data() + 3 * weights.size();
            ops->search_grids(args, scales, scales + kRows);
            if (expected.empty()) {
                expected = found;
            }
            CHECK(first_difference(found, expected) == -1);
        }
    }
}

TEST_CASE("tiles of a factor have the same bits everywhere", "[feedback]") {
    Random random(3);
    const auto doubles = [&](size_t count) {
        std::vector<double> values(count);
        for (double& value : values) {
            value = double{random.signed_unit()} + 0x1p-30 * double{random.signed_unit()};
        }
        return values;
    };
    constexpr size_t kTile = kFactorTile;
    const std::vector<double> left = doubles(70 * kTile);
    const std::vector<double> right = doubles(70 * kTile);
    const std::vector<double> before = doubles(kTile * kTile);
    const std::vector<double> diagonal = doubles(kTile * kTile);
    std::vector<double> expected = before;
    for (size_t c = 0; c < kTile; ++c) {
        for (size_t row = 0; row < kTile; ++row) {
            double& sum = expected[c * kTile + row];
            for (size_t i = 0; i < 70; ++i) {
                sum = std::fma(-left[i * kTile + row], right[i * kTile + c], sum);
            }
        }
    }
    for (size_t c = 0; c < kTile; ++c) {
        for (size_t row = 0; row < kTile; ++row) {
            double& x = expected[c * kTile + row];
            x *= diagonal[c * kTile + c];
            for (size_t later = c + 1; later < kTile; ++later) {
                double& sum = expected[later * kTile + row];
                sum = std::fma(-x, diagonal[c * kTile + later], sum);
            }
        }
    }
    for (const VectorOps* ops : runnable_vector_ops()) {
        CAPTURE(ops->name);
        std::vector<double> sums = before;
        ops->subtract_products(left.data(), right.data(), 70, sums.data());
        ops->solve_columns(diagonal.data(), sums.data());
        CHECK(sums == expected);
    }
}
