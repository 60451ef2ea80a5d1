#include <atomic>
#include <cmath>
#include <vector>

#include "weights.h"

// linear() over several inputs at once, rows that are made on the way, float weights, and results that are added.

namespace tmac {
namespace {

PackedWeight packed_weight(Random& random, uint8_t bits, int64_t n, int64_t k) {
    QuantSpec spec;
    spec.bits = bits;
    spec.group_size = 32;
    return pack(make_weight(random, spec, n, k).canonical(), select_kernels(spec, selection()), 1);
}

/// Counts how often every row is made.
class CountedRows final : public InputRows {
public:
    CountedRows(const std::vector<float>& x, int64_t columns)
        : x_(x), columns_(columns), made(x.size() / static_cast<size_t>(columns)) {}

    const float* row(int64_t token, float* scratch) const override {
        ++made[static_cast<size_t>(token)];
        std::copy_n(x_.data() + token * columns_, columns_, scratch);
        return scratch;
    }

private:
    const std::vector<float>& x_;
    int64_t columns_;

public:
    mutable std::vector<std::atomic<int>> made;
};

Tensor rows_of(std::vector<float>& y, int64_t n) {
    return {y.data(), DType::f32, static_cast<int64_t>(y.size()) / n, n, n};
}

}  // namespace

TEST_CASE("jobs with inputs of their own give the bits of one call each, whatever the threads", "[linear]") {
    Random random(31);
    const std::vector<int64_t> tokens = {1, 5, 0, 130};
    for (const Phase phase : {Phase::decode, Phase::prompt}) {
        for (const int threads : {1, 2, 3}) {
            std::vector<PackedWeight> weights;
            std::vector<std::vector<float>> inputs;
            std::vector<std::vector<float>> want;
            std::vector<std::vector<float>> got;
            std::vector<WeightView> views;
            for (size_t i = 0; i < tokens.size(); ++i) {
                const auto n = static_cast<int64_t>(40 + 70 * i);
                const auto k = static_cast<int64_t>(64 + 36 * i);
                weights.push_back(packed_weight(random, static_cast<uint8_t>(2 + i), n, k));
                inputs.push_back(random.floats(tokens[i] * k));
                want.push_back(run_linear(weights.back(), inputs.back(), tokens[i], 1, phase));
                got.emplace_back(want.back().size(), -1.0F);
            }
            std::vector<TensorRows> rows;
            std::vector<Job> jobs;
            for (size_t i = 0; i < tokens.size(); ++i) {
                views.push_back(view_weight(weights[i].data(), weights[i].size()));
                const int64_t k = views.back().header.k;
                rows.emplace_back(Tensor{inputs[i].data(), DType::f32, tokens[i], k, k});
            }
            for (size_t i = 0; i < tokens.size(); ++i) {
                const Tensor y{got[i].data(), DType::f32, tokens[i], views[i].header.n, views[i].header.n};
                jobs.push_back({&rows[i], tokens[i], views[i].header.k, {Projection(views[i], nullptr, y)}});
            }
            linear(jobs, phase, threads);
            CAPTURE(threads);
            CHECK(got == want);
        }
    }
}

TEST_CASE("a row is made once, however many weights of any kind read it", "[linear]") {
    Random random(32);
    const int64_t k = 96;
    const int64_t tokens = 140;
    const std::vector<float> x = random.floats(tokens * k);
    const PackedWeight four = packed_weight(random, 4, 48, k);
    const PackedWeight two = packed_weight(random, 2, 33, k);
    const std::vector<float> floats = random.floats(20 * k);
    const WeightView views[] = {view_weight(four.data(), four.size()), view_weight(two.data(), two.size())};
    const FloatMatrix matrix{floats.data(), DType::f32, 20, k};
    std::vector<float> y4(static_cast<size_t>(tokens * 48));
    std::vector<float> y2(static_cast<size_t>(tokens * 33));
    std::vector<float> yf(static_cast<size_t>(tokens * 20));
    for (const int threads : {1, 2}) {
        const CountedRows rows(x, k);
        linear({{&rows,
                 tokens,
                 k,
                 {Projection(views[0], nullptr, rows_of(y4, 48)), Projection(views[1], nullptr, rows_of(y2, 33)),
                  Projection(matrix, nullptr, rows_of(yf, 20))}}},
               Phase::prompt, threads);
        CHECK(std::all_of(rows.made.begin(), rows.made.end(), [](const std::atomic<int>& made) { return made == 1; }));
        CHECK(y4 == run_linear(four, x, tokens, 1, Phase::prompt));
        CHECK(y2 == run_linear(two, x, tokens, 1, Phase::prompt));
    }
}

TEST_CASE("float weights of every type are multiplied as they lie there", "[linear]") {
    Random random(33);
    const int64_t n = 37;
    const int64_t k = 100;
    const int64_t tokens = 19;
    std::vector<float> x = random.floats(tokens * k);
    const std::vector<float> bias = random.floats(n);
    for (const DType type : {DType::f32, DType::f16, DType::bf16}) {
        std::vector<float> w = random.floats(n * k);
        std::vector<uint16_t> halves(w.size());
        for (size_t i = 0; i < w.size() && type != DType::f32; ++i) {
            halves[i] = type == DType::f16 ? f32_to_f16(w[i]) : f32_to_bf16(w[i]);
            w[i] = type == DType::f16 ? f16_to_f32(halves[i]) : bf16_to_f32(halves[i]);
        }
        const void* data = type == DType::f32 ? static_cast<const void*>(w.data()) : halves.data();
        const FloatMatrix matrix{data, type, n, k};
        std::vector<float> y(static_cast<size_t>(tokens * n));
        linear({x.data(), DType::f32, tokens, k, k}, {Projection(matrix, bias.data(), rows_of(y, n))}, Phase::decode,
               2);
        for (int64_t token = 0; token < tokens; ++token) {
            for (int64_t row = 0; row < n; ++row) {
                double sum = 0;
                double magnitude = std::fabs(static_cast<double>(bias[static_cast<size_t>(row)]));
                for (int64_t column = 0; column < k; ++column) {
                    const double product = static_cast<double>(x[static_cast<size_t>(token * k + column)]) *
                                           w[static_cast<size_t>(row * k + column)];
                    sum += product;
                    magnitude += std::fabs(product);
                }
                // A lane adds k / 16 products, four additions fold the lanes, one adds the bias: each step rounds once.
                const double bound = (k / 16.0 + 1 + 4 + 1) * 0x1p-24 * magnitude;
                const double got = y[static_cast<size_t>(token * n + row)];
                CHECK(std::fabs(got - (sum + bias[static_cast<size_t>(row)])) <= bound);
            }
        }
    }
}

TEST_CASE("a result can be added to what is there", "[linear]") {
    Random random(34);
    const int64_t n = 72;
    const int64_t k = 64;
    const PackedWeight weight = packed_weight(random, 4, n, k);
    const WeightView view = view_weight(weight.data(), weight.size());
    for (const int64_t tokens : {int64_t{1}, int64_t{200}}) {
        std::vector<float> x = random.floats(tokens * k);
        const std::vector<float> before = random.floats(tokens * n);
        const std::vector<float> bias = random.floats(n);
        std::vector<float> product = run_linear(weight, x, tokens, 1, Phase::prompt);
        for (const float factor : {1.0F, 0.25F}) {
            std::vector<float> y = before;
            linear({x.data(), DType::f32, tokens, k, k},
                   {Projection(view, bias.data(), rows_of(y, n), Store::add, factor)}, Phase::prompt, 2);
            std::vector<float> want = before;
            for (size_t i = 0; i < want.size(); ++i) {
                const float result = product[i] + bias[i % static_cast<size_t>(n)];
                want[i] += factor * result;
            }
            CHECK(y == want);
        }
    }
    std::vector<uint16_t> halves(static_cast<size_t>(n));
    std::vector<float> x = random.floats(k);
    CHECK_THROWS_AS(
        linear({x.data(), DType::f32, 1, k, k},
               {Projection(view, nullptr, {halves.data(), DType::f16, 1, n, n}, Store::add)}, Phase::decode, 1),
        std::invalid_argument);
}

}  // namespace tmac
