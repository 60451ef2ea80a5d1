#include <cmath>
#include <vector>

#include "catch.h"
#include "core/half.h"
#include "kernels/vector_isas.h"
#include "kernels/vector_ops.h"

using namespace tmac;

namespace {

/// A weight of one of the types, and its values as floats.
struct FloatWeight {
    FloatType type;
    std::vector<uint16_t> halves;
    std::vector<float> values;

    FloatWeight(FloatType weight_type, const std::vector<float>& floats) : type(weight_type), values(floats) {
        for (float& value : values) {
            if (type != FloatType::f32) {
                halves.push_back(type == FloatType::f16 ? f32_to_f16(value) : f32_to_bf16(value));
                value = type == FloatType::f16 ? f16_to_f32(halves.back()) : bf16_to_f32(halves.back());
            }
        }
    }

    const void* data() const {
        return type == FloatType::f32 ? static_cast<const void*>(values.data())
                                      : static_cast<const void*>(halves.data());
    }
};

/// Sixteen lanes, folded: docs/numerics.md.
float dot(const float* w, const float* x, int64_t k) {
    float lanes[16] = {};
    for (int64_t i = 0; i < (k + 15) / 16 * 16; ++i) {
        lanes[i % 16] = std::fma(i < k ? w[i] : 0.0F, i < k ? x[i] : 0.0F, lanes[i % 16]);
    }
    for (int width = 8; width >= 1; width /= 2) {
        for (int j = 0; j < width; ++j) {
            lanes[j] += lanes[j + width];
        }
    }
    return lanes[0];
}

struct Shape {
    int64_t n;
    int64_t k;
    int32_t m;
};

}  // namespace

TEST_CASE("float rows are what the page on numerics says", "[vector_ops]") {
    Random random(11);
    for (const Shape& shape :
         {Shape{1, 1, 1}, {3, 15, 2}, {4, 16, 1}, {9, 33, 5}, {13, 100, 7}, {6, 576, 16}, {21, 80, 13}, {5, 64, 130}}) {
        const auto [n, k, m] = shape;
        const int64_t x_stride = k + 3;
        const int64_t ldy = n + 5;
        const std::vector<float> floats = random.floats(n * k);
        const std::vector<float> x = random.floats(m * x_stride);
        for (const FloatType type : {FloatType::f32, FloatType::f16, FloatType::bf16}) {
            const FloatWeight weight(type, floats);
            const int64_t row_begin = n > 4 ? 2 : 0;
            std::vector<float> expected(static_cast<size_t>(m * ldy), 7.0F);  // what is not asked for stays
            for (int32_t token = 0; token < m; ++token) {
                for (int64_t row = row_begin; row < n; ++row) {
                    expected[static_cast<size_t>(token * ldy + row)] =
                        dot(weight.values.data() + row * k, x.data() + token * x_stride, k);
                }
            }
            for (const VectorOps* ops : runnable_vector_ops()) {
                CAPTURE(n, k, m, static_cast<int>(type), ops->name);
                std::vector<float> y(expected.size(), 7.0F);
                ops->float_rows({type, weight.data(), k, x.data(), x_stride, y.data(), ldy, row_begin, n, m});
                CHECK(first_difference(y, expected) == -1);
            }
        }
    }
}

TEST_CASE("float rows stay near the exact product and show a NaN", "[vector_ops]") {
    Random random(12);
    const int64_t n = 8;
    const int64_t k = 1000;
    const std::vector<float> w = random.floats(n * k);
    std::vector<float> x = random.floats(k);
    const auto run = [&](const VectorOps& ops) {
        std::vector<float> y(n);
        ops.float_rows({FloatType::f32, w.data(), k, x.data(), k, y.data(), n, 0, n, 1});
        return y;
    };
    for (const VectorOps* ops : runnable_vector_ops()) {
        CAPTURE(ops->name);
        const std::vector<float> y = run(*ops);
        for (int64_t row = 0; row < n; ++row) {
            double exact = 0.0;
            double magnitude = 0.0;
            for (int64_t i = 0; i < k; ++i) {
                const double term =
                    static_cast<double>(w[static_cast<size_t>(row * k + i)]) * x[static_cast<size_t>(i)];
                exact += term;
                magnitude += std::abs(term);
            }
            // 63 additions in a lane and 4 of the fold, each a relative rounding of at most the sum of magnitudes
            CHECK(std::abs(y[static_cast<size_t>(row)] - exact) <= 67 * 0x1p-24 * magnitude);
        }
    }
    x[999] = NAN;
    for (const VectorOps* ops : runnable_vector_ops()) {
        CHECK(std::isnan(run(*ops)[0]));
    }
}
