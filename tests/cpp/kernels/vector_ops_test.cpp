#include "kernels/vector_ops.h"

#include <cmath>
#include <functional>
#include <string>

#include "catch.h"
#include "kernels/vector_isas.h"

using namespace tmac;

namespace {

constexpr double kUnit = 0x1p-24;  // what one rounding may change, relatively

const std::vector<int64_t> kSizes = {1, 2, 15, 16, 17, 31, 48, 63, 64, 65, 80, 127, 200, 576, 1000};

/// Runs `body(ops)` on every instruction set and asks for the same bits.
void check_all(const std::string& what, int64_t n, const std::function<std::vector<float>(const VectorOps&)>& body) {
    std::vector<float> expected;
    for (const VectorOps* ops : runnable_vector_ops()) {
        CAPTURE(what, n, ops->name);
        const std::vector<float> found = body(*ops);
        if (expected.empty()) {
            expected = found;
        }
        CHECK(first_difference(found, expected) == -1);
    }
}

/// The sum in `lanes` lanes, folded by halves: docs/numerics.md, one number at a time.
float fold(std::vector<float> lanes) {
    for (size_t width = lanes.size() / 2; width >= 1; width /= 2) {
        for (size_t j = 0; j < width; ++j) {
            lanes[j] += lanes[j + width];
        }
    }
    return lanes[0];
}

struct Named {
    ActivationFn fn;
    const char* name;
    double (*exact)(double);
    double bound;  ///< relative, where the result is at least 1e-30
};

double sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

// exp is good to 1.5e-7 and what it is taken of to a few roundings, which a result of exp(-z) multiplies by z; sum,
// quotient and products add a rounding each. |x| stays below 12, |z| of gelu_tanh where it is not negligible below 70.
const Named kActivations[] = {
    {ActivationFn::silu, "silu", [](double x) { return x * sigmoid(x); }, 1.5e-7 + 4 * kUnit},
    {ActivationFn::gelu, "gelu", [](double x) { return x * 0.5 * std::erfc(-x / std::sqrt(2.0)); }, 6e-7},
    {ActivationFn::gelu_tanh, "gelu_tanh",
     [](double x) { return x * sigmoid(2.0 * std::sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)); },
     1.5e-7 + (70 * 6 + 4) * kUnit},
    {ActivationFn::relu, "relu", [](double x) { return x > 0 ? x : 0.0; }, 0.0},
    {ActivationFn::relu2, "relu2", [](double x) { return x > 0 ? x * x : 0.0; }, kUnit},
};

}  // namespace

TEST_CASE("every instruction set with kernels has float operations", "[vector_ops]") {
    for (const RegistryRow& row : registry()) {
        const VectorOps* ops = find_vector_ops(name_of(row.isa));
        REQUIRE(ops != nullptr);
        CHECK(ops->isa == row.isa);
        CHECK((ops->isa == Isa::scalar) == (ops->features == 0));
    }
    CHECK(find_vector_ops("avx3") == nullptr);
    const VectorOps& chosen = vector_ops();
    CHECK((chosen.features & ~cpu_features()) == 0);
    if (selection().isa.empty()) {
        CHECK(&chosen == (runnable_vector_ops().size() == 1 ? runnable_vector_ops()[0] : runnable_vector_ops().back()));
    }
}

TEST_CASE("float operations have the same bits everywhere", "[vector_ops]") {
    Random random(1);
    for (const int64_t n : kSizes) {
        for (const bool wild : {false, true}) {
            const auto floats = [&] { return wild ? wild_floats(random, n) : random.floats(n); };
            const std::vector<float> x = floats();
            const std::vector<float> y = floats();
            const std::vector<float> bias = floats();
            const auto changed = [&](const auto& change) {
                std::vector<float> result = x;
                change(result.data());
                return result;
            };
            check_all("rms_norm", n, [&](const VectorOps& ops) {
                return changed([&](float* to) { ops.rms_norm(x.data(), y.data(), 1e-5F, n, to); });
            });
            check_all("rms_norm in place", n, [&](const VectorOps& ops) {
                return changed([&](float* to) { ops.rms_norm(to, nullptr, 1e-6F, n, to); });
            });
            check_all("layer_norm", n, [&](const VectorOps& ops) {
                return changed([&](float* to) { ops.layer_norm(x.data(), y.data(), bias.data(), 1e-5F, n, to); });
            });
            check_all("layer_norm in place", n, [&](const VectorOps& ops) {
                return changed([&](float* to) { ops.layer_norm(to, y.data(), nullptr, 1e-5F, n, to); });
            });
            check_all("add", n,
                      [&](const VectorOps& ops) { return changed([&](float* to) { ops.add(to, y.data(), n); }); });
            check_all("add_scaled", n, [&](const VectorOps& ops) {
                return changed([&](float* to) { ops.add_scaled(to, 0.37F, y.data(), n); });
            });
            check_all("scale", n,
                      [&](const VectorOps& ops) { return changed([&](float* to) { ops.scale(to, 1.7F, n); }); });
            check_all("softcap", n,
                      [&](const VectorOps& ops) { return changed([&](float* to) { ops.softcap(to, 30.0F, n); }); });
            check_all("exp", n, [&](const VectorOps& ops) {
                return changed([&](float* to) { ops.exp(to, 0.5F, 1.25F, n, to); });
            });
            check_all("max, sum_exp", n, [&](const VectorOps& ops) {
                const double sum = ops.sum_exp(x.data(), 0.5F, n);
                const auto high = static_cast<float>(sum);
                return std::vector<float>{ops.max(x.data(), n), high,
                                          std::isfinite(sum) ? static_cast<float>(sum - high) : 0.0F};
            });
            check_all("rope", n, [&](const VectorOps& ops) {
                std::vector<float> both = x;
                both.insert(both.end(), bias.begin(), bias.end());
                ops.rope(both.data(), y.data(), bias.data(), n);
                return both;
            });
            for (const Named& activation : kActivations) {
                check_all(activation.name, n, [&](const VectorOps& ops) {
                    return changed([&](float* to) { ops.activate(activation.fn, to, y.data(), n, to); });
                });
                check_all(activation.name, n, [&](const VectorOps& ops) {
                    return changed([&](float* to) { ops.activate(activation.fn, x.data(), nullptr, n, to); });
                });
            }
        }
    }
}

TEST_CASE("norms are what the page on numerics says", "[vector_ops]") {
    Random random(2);
    for (const int64_t n : kSizes) {
        const std::vector<float> x = random.floats(n);
        const std::vector<float> weight = random.floats(n);
        const std::vector<float> bias = random.floats(n);
        const auto count = static_cast<size_t>(n);
        const auto length = static_cast<float>(n);
        std::vector<float> squares(64), sums(64), apart(64);
        for (size_t i = 0; i < count; ++i) {
            squares[i % 64] = std::fma(x[i], x[i], squares[i % 64]);
            sums[i % 64] += x[i];
        }
        const float mean = fold(sums) / length;
        for (size_t i = 0; i < count; ++i) {
            apart[i % 64] = std::fma(x[i] - mean, x[i] - mean, apart[i % 64]);
        }
        const float rms = 1.0F / std::sqrt(fold(squares) / length + 1e-5F);
        const float deviation = 1.0F / std::sqrt(fold(apart) / length + 1e-5F);
        std::vector<float> expected_rms(count), expected_layer(count);
        for (size_t i = 0; i < count; ++i) {
            expected_rms[i] = x[i] * rms * weight[i];
            expected_layer[i] = (x[i] - mean) * deviation * weight[i] + bias[i];
        }
        for (const VectorOps* ops : runnable_vector_ops()) {
            CAPTURE(n, ops->name);
            std::vector<float> y(count);
            ops->rms_norm(x.data(), weight.data(), 1e-5F, n, y.data());
            CHECK(first_difference(y, expected_rms) == -1);
            ops->layer_norm(x.data(), weight.data(), bias.data(), 1e-5F, n, y.data());
            CHECK(first_difference(y, expected_layer) == -1);
        }
    }
}

TEST_CASE("exp, activations and softcap are close to exact", "[vector_ops]") {
    const VectorOps& ops = *runnable_vector_ops().back();
    std::vector<float> x;
    for (int i = -86499; i <= 88722; ++i) {
        x.push_back(static_cast<float>(i) * 1e-3F);
    }
    const auto n = static_cast<int64_t>(x.size());
    std::vector<float> y(x.size());
    ops.exp(x.data(), 0.0F, 1.0F, n, y.data());
    double worst = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double exact = std::exp(static_cast<double>(x[i]));
        worst = std::max(worst, std::abs(static_cast<double>(y[i]) - exact) / exact);
    }
    CHECK(worst < 1.5e-7);

    for (const Named& activation : kActivations) {
        double error = 0.0;
        ops.activate(activation.fn, x.data(), nullptr, n, y.data());
        for (size_t i = 0; i < x.size(); ++i) {
            const double exact = activation.exact(static_cast<double>(x[i]));
            if (std::abs(x[i]) <= 12.0F && std::abs(exact) >= 1e-30) {
                error = std::max(error, std::abs(static_cast<double>(y[i]) - exact) / std::abs(exact));
            }
        }
        CAPTURE(activation.name);
        CHECK(error <= activation.bound);
    }

    std::vector<float> capped = x;
    ops.softcap(capped.data(), 30.0F, n);
    double error = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double exact = 30.0 * std::tanh(static_cast<double>(x[i]) / 30.0);
        error = std::max(error, std::abs(static_cast<double>(capped[i]) - exact) / std::max(std::abs(exact), 1e-30));
    }
    CHECK(error < 2e-7 + 3 * kUnit);
}

TEST_CASE("not-a-number and infinity stay visible", "[vector_ops]") {
    for (const VectorOps* ops : runnable_vector_ops()) {
        CAPTURE(ops->name);
        for (const int64_t at : {int64_t{0}, int64_t{16}, int64_t{36}}) {
            std::vector<float> x(37, 0.5F);
            x[static_cast<size_t>(at)] = NAN;
            std::vector<float> y(x.size());
            CHECK(std::isnan(ops->max(x.data(), 37)));
            CHECK(std::isnan(ops->sum_exp(x.data(), 0.0F, 37)));
            ops->rms_norm(x.data(), nullptr, 1e-5F, 37, y.data());
            CHECK((std::isnan(y[0]) && std::isnan(y[20])));
            for (const Named& activation : kActivations) {
                CAPTURE(activation.name);
                ops->activate(activation.fn, x.data(), nullptr, 37, y.data());
                CHECK(std::isnan(y[static_cast<size_t>(at)]));
                CHECK_FALSE(std::isnan(y[static_cast<size_t>(at == 0 ? 1 : at - 1)]));
            }
            ops->softcap(x.data(), 30.0F, 37);
            CHECK(std::isnan(x[static_cast<size_t>(at)]));
        }
        std::vector<float> x = {-INFINITY, -87.0F, 0.0F, 88.7F, 88.8F, INFINITY, NAN};
        CHECK(ops->max(x.data(), 6) == INFINITY);
        CHECK(ops->max(x.data(), 1) == -INFINITY);
        CHECK(ops->max(x.data(), 0) == -INFINITY);
        ops->exp(x.data(), 0.0F, 1.0F, 7, x.data());
        CHECK((x[0] == 0.0F && x[1] == 0.0F && x[2] == 1.0F && std::isfinite(x[3])));
        CHECK((x[4] == INFINITY && x[5] == INFINITY && std::isnan(x[6])));
        std::vector<float> negative(20, -0.0F);
        CHECK_FALSE(std::signbit(ops->max(negative.data(), 20)));
    }
}

TEST_CASE("sums of exponentials are good for the log-probabilities of a vocabulary", "[vector_ops]") {
    Random random(3);
    const std::vector<float> x = random.floats(50257);
    double exact = 0.0;
    for (const float value : x) {
        exact += std::exp(static_cast<double>(value - 1.0F));
    }
    for (const VectorOps* ops : runnable_vector_ops()) {
        CAPTURE(ops->name);
        // Each term 1.5e-7, and 16 additions in its lane and 4 of the fold.
        CHECK(std::abs(ops->sum_exp(x.data(), 1.0F, 50257) - exact) < exact * (1.5e-7 + 20 * kUnit));
    }
}
