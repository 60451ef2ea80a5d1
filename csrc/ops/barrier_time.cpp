#include "ops/barrier_time.h"

#include <atomic>
#include <chrono>

#include "core/check.h"
#include "core/portable.h"
#include "core/thread_pool.h"

namespace tmac {
namespace {

constexpr int kPatience = 1 << 16;  ///< looks for the others: without one of them a region still ends, within some ms

}  // namespace

double barrier_seconds(int64_t repeats, int num_threads) {
    TMAC_CHECK(repeats > 0, "[barrier_seconds] repeats must be positive, got ", repeats);
    TMAC_CHECK(num_threads >= 0, "[barrier_seconds] num_threads must not be negative, got ", num_threads);
    const int threads = num_threads > 0 ? num_threads : get_num_threads();
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t repeat = 0; repeat < repeats; ++repeat) {
        std::atomic<int> arrived{0};
        parallel_for(threads, 1, threads, [&arrived, threads](Range range) {
            arrived.fetch_add(static_cast<int>(range.end - range.begin));
            for (int look = 0; look < kPatience && arrived.load() < threads; ++look) {
                TMAC_PAUSE();
            }
        });
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    return elapsed.count() / static_cast<double>(repeats);
}

}  // namespace tmac
