#include "core/thread_pool.h"

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch.h"

using namespace tmac;

namespace {

/// How often each item was visited.
std::vector<int> visits(int64_t count, int64_t grain, int num_threads) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
    std::atomic<bool> aligned{true};
    parallel_for(count, grain, num_threads, [&](Range range) {
        if (range.begin % grain != 0 || (range.end % grain != 0 && range.end != count)) {
            aligned = false;
        }
        for (int64_t i = range.begin; i < range.end; ++i) {
            ++seen[static_cast<size_t>(i)];
        }
    });
    CHECK(aligned);
    return {seen.begin(), seen.end()};
}

}  // namespace

TEST_CASE("every item is visited once, in ranges that start at a grain", "[thread_pool]") {
    for (const int64_t count : {1, 2, 15, 16, 17, 100, 1000}) {
        for (const int64_t grain : {1, 7, 16, 64}) {
            for (const int threads : {0, 1, 2, 3, 8, 33}) {
                CAPTURE(count, grain, threads);
                CHECK(visits(count, grain, threads) == std::vector<int>(static_cast<size_t>(count), 1));
            }
        }
    }
}

TEST_CASE("torch in the process decides which threads run a region", "[thread_pool]") {
#if defined(__linux__) && !defined(TMAC_BESIDE_TORCH)
    const ThreadBackend expected = ThreadBackend::own;
#else
    const ThreadBackend expected = ThreadBackend::openmp;
#endif
    CHECK(thread_backend() == expected);
    CHECK(visits(100, 1, 2) == std::vector<int>(100, 1));
    CHECK(thread_backend() == expected);
}

TEST_CASE("a region inside a region visits every item", "[thread_pool]") {
    std::atomic<int64_t> items{0};
    parallel_for(6, 1, 3, [&items](Range outer) {
        for (int64_t i = outer.begin; i < outer.end; ++i) {
            parallel_for(10, 1, 2, [&items](Range inner) { items += inner.end - inner.begin; });
        }
    });
    CHECK(items == 60);
}

TEST_CASE("nothing to do calls nothing", "[thread_pool]") {
    parallel_for(0, 16, 2, [](Range) { FAIL("called"); });
}

TEST_CASE("an exception of any thread reaches the caller", "[thread_pool]") {
    for (const int64_t bad : {0, 50, 99}) {
        const auto body = [bad](Range range) {
            if (range.begin <= bad && bad < range.end) {
                throw std::runtime_error("item");
            }
        };
        CHECK_THROWS_WITH(parallel_for(100, 1, 2, body), TMAC_CONTAINS("item"));
    }
    CHECK(visits(10, 1, 2) == std::vector<int>(10, 1));
}

TEST_CASE("several threads may run regions at once", "[thread_pool]") {
    std::atomic<int64_t> sum{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 4; ++i) {
        callers.emplace_back([&sum] {
            for (int repeat = 0; repeat < 20; ++repeat) {
                parallel_for(100, 8, 2, [&sum](Range range) { sum += range.end - range.begin; });
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    CHECK(sum == 4 * 20 * 100);
}

TEST_CASE("the number of threads is set, reset and checked", "[thread_pool]") {
    CHECK(default_num_threads() >= 1);
    set_num_threads(3);
    CHECK(get_num_threads() == 3);
    CHECK(visits(100, 1, 0) == std::vector<int>(100, 1));
    CHECK_THROWS_AS(set_num_threads(-1), std::invalid_argument);
    CHECK(get_num_threads() == 3);
    set_num_threads(0);
    CHECK(get_num_threads() == default_num_threads());
}
