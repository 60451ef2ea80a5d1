#include "ops/tuner.h"

#include <stdexcept>
#include <vector>

#include "catch.h"

using namespace tmac;

namespace {

const std::function<void()> kGoOn = [] {};

QuantSpec spec_of(uint8_t bits, int32_t group_size, ZeroPoint zero_point, Codebook codebook = Codebook::uniform) {
    QuantSpec spec;
    spec.bits = bits;
    spec.group_size = group_size;
    spec.zero_point = zero_point;
    spec.codebook = codebook;
    spec.fixed_zero = codebook == Codebook::ternary ? 1.0F : 0.5F;
    return spec;
}

}  // namespace

TEST_CASE("every pair gets a time for every number of tokens", "[tuner]") {
    const QuantSpec specs[] = {
        spec_of(1, 32, ZeroPoint::fixed),
        spec_of(4, 128, ZeroPoint::offset),
        spec_of(3, -1, ZeroPoint::integer),
        spec_of(8, 50, ZeroPoint::real),
        spec_of(2, 64, ZeroPoint::fixed, Codebook::ternary),
    };
    for (const QuantSpec& spec : specs) {
        const std::vector<KernelPair> pairs = candidates(spec, selection());
        REQUIRE(!pairs.empty());
        for (const auto& [n, k] : {std::pair{1, 1}, std::pair{3, 5}, std::pair{70, 300}}) {
            INFO(to_string(spec) << " " << n << "x" << k);
            const std::vector<KernelTimes> times = time_kernels(spec, n, k, pairs, {{1, 8, 33}, 5, 2}, kGoOn);
            REQUIRE(times.size() == pairs.size());
            for (size_t i = 0; i < pairs.size(); ++i) {
                CHECK(times[i].kernels.decode == pairs[i].decode);
                CHECK(times[i].kernels.prompt == pairs[i].prompt);
                REQUIRE(times[i].seconds.size() == 3);
                for (const std::vector<double>& samples : times[i].seconds) {
                    CHECK((samples.size() == 5 || samples.size() == 1));
                    for (const double seconds : samples) {
                        CHECK(seconds > 0);
                    }
                }
            }
        }
    }
}

TEST_CASE("the best pair at one token is never left with one sample", "[tuner]") {
    const QuantSpec spec = spec_of(4, 128, ZeroPoint::fixed);
    const std::vector<KernelTimes> times =
        time_kernels(spec, 64, 256, candidates(spec, selection()), {{1}, 6, 1}, kGoOn);
    size_t full = 0;
    for (const KernelTimes& each : times) {
        full += each.seconds[0].size() == 6 ? 1 : 0;
    }
    CHECK(full >= 1);
}

TEST_CASE("the exact class can be timed too", "[tuner]") {
    QuantSpec spec = spec_of(2, 32, ZeroPoint::fixed);
    spec.activation = Activation::float_exact;
    spec.scale_format = ScaleFormat::f32;
    CHECK(!time_kernels(spec, 9, 40, candidates(spec, selection()), {{1, 17}, 1, 0}, kGoOn).empty());
}

TEST_CASE("what the checkpoint throws ends the measurement", "[tuner]") {
    const QuantSpec spec = spec_of(4, 128, ZeroPoint::fixed);
    int left = 4;
    const auto stop = [&] {
        if (--left < 0) {
            throw std::runtime_error("stop");
        }
    };
    CHECK_THROWS_WITH(time_kernels(spec, 16, 64, candidates(spec, selection()), {{1}, 1000, 1}, stop), "stop");
    CHECK(left == -1);
}

TEST_CASE("numbers out of range are refused", "[tuner]") {
    const QuantSpec spec = spec_of(4, 128, ZeroPoint::fixed);
    const std::vector<KernelPair> pairs = candidates(spec, selection());
    const auto measure = [&](int64_t n, int64_t k, const TimingPlan& plan) {
        return time_kernels(spec, n, k, pairs, plan, kGoOn);
    };
    CHECK_THROWS_WITH(measure(0, 64, {{1}}), TMAC_CONTAINS("out_features"));
    CHECK_THROWS_WITH(measure(8, 0, {{1}}), TMAC_CONTAINS("in_features"));
    CHECK_THROWS_WITH(measure(8, kMaxTimedColumns + 1, {{1}}), TMAC_CONTAINS("in_features"));
    CHECK_THROWS_WITH(measure(8, 64, {{}}), TMAC_CONTAINS("tokens"));
    CHECK_THROWS_WITH(measure(8, 64, {{1, 0}}), TMAC_CONTAINS("tokens"));
    CHECK_THROWS_WITH(measure(8, 64, {{kMaxTimedTokens + 1}}), TMAC_CONTAINS("tokens"));
    CHECK_THROWS_WITH(measure(8, 64, {{1}, 0}), TMAC_CONTAINS("runs"));
    CHECK_THROWS_WITH(measure(8, 64, {{1}, 1, -1}), TMAC_CONTAINS("num_threads"));
    CHECK_THROWS_WITH(time_kernels(spec, 8, 64, {}, {{1}}, kGoOn), TMAC_CONTAINS("no kernel"));
}
