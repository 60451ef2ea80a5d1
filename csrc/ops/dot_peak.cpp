#include "ops/dot_peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "core/check.h"
#include "core/cpu_features.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"

namespace tmac {
namespace {

constexpr double kSeconds = 1e-4;
constexpr int kRuns = 8;

struct Measured {
    double seconds;
    double operations;
};

/// `rounds` of the loop on each of the threads.
Measured run(const DotPeak& peak, int64_t rounds, int threads) {
    std::atomic<int64_t> operations{0};
    std::atomic<int32_t> results{0};
    const auto begin = std::chrono::steady_clock::now();
    parallel_for(threads, 1, threads, [&](Range range) {
        for (int64_t i = range.begin; i < range.end; ++i) {
            auto result = static_cast<int32_t>(rounds);
            operations.fetch_add(peak.run(rounds, &result));
            results.fetch_xor(result);
        }
    });
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    return {elapsed.count(), static_cast<double>(operations.load())};
}

}  // namespace

double dot_peak(const std::string& isa, int num_threads) {
    const DotPeak* peak = find_dot_peak(isa);
    TMAC_CHECK(peak != nullptr, "[dot_peak] this build has no int8 dot products for '", isa, "'");
    TMAC_CHECK((peak->features & ~cpu_features()) == 0, "[dot_peak] this CPU has no int8 dot products of '", isa, "'");
    TMAC_CHECK(num_threads >= 0, "[dot_peak] num_threads must be 0 or more, got ", num_threads);
    const int threads = num_threads > 0 ? num_threads : get_num_threads();
    int64_t rounds = 256;
    while (run(*peak, rounds, threads).seconds < kSeconds) {  // wakes the threads too
        rounds *= 2;
    }
    double best = 0.0;  // other work on the CPU only takes away
    for (int i = 0; i < kRuns; ++i) {
        const Measured measured = run(*peak, rounds, threads);
        best = std::max(best, measured.operations / measured.seconds);
    }
    return best;
}

}  // namespace tmac
