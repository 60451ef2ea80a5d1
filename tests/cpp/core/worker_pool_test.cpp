#include "core/worker_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "catch.h"

using namespace tmac;

namespace {

/// Items that were not visited once, or whose range began or ended between two grains.
int64_t wrong_items(int64_t count, int64_t grain, int threads, bool spin) {
    std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
    std::atomic<int64_t> wrong{0};
    run_on_workers(count, grain, threads, spin, [&](Range range) {
        if (range.begin >= range.end || range.begin % grain != 0 || (range.end % grain != 0 && range.end != count)) {
            ++wrong;
        }
        for (int64_t i = range.begin; i < range.end; ++i) {
            ++seen[static_cast<size_t>(i)];
        }
    });
    return wrong + std::count_if(seen.begin(), seen.end(), [](const auto& visits) { return visits != 1; });
}

void wait_until(const std::atomic<bool>& flag) {
    while (!flag) {
        std::this_thread::yield();
    }
}

}  // namespace

TEST_CASE("every item runs once, whoever takes it", "[worker_pool]") {
    for (const int64_t count : {1, 2, 3, 15, 16, 17, 255, 1000, 4096}) {
        for (const int64_t grain : {1, 3, 16, 64, 5000}) {
            for (const int threads : {2, 3, 8, 40}) {
                for (const bool spin : {false, true}) {
                    CAPTURE(count, grain, threads, spin);
                    CHECK(wrong_items(count, grain, threads, spin) == 0);
                }
            }
        }
    }
}

TEST_CASE("no item is lost or repeated over many regions in a row", "[worker_pool]") {
    int64_t wrong = 0;
    for (int repeat = 0; repeat < 5000; ++repeat) {
        wrong += wrong_items(64 + repeat % 7, 1 + repeat % 3, 2 + repeat % 3, repeat % 100 < 90);
    }
    CHECK(wrong == 0);
}

TEST_CASE("workers that have gone to sleep are woken", "[worker_pool]") {
    for (int repeat = 0; repeat < 10; ++repeat) {
        std::atomic<int> arrived{0};
        // Each of the two pieces waits for the other: only two threads together can end this.
        run_on_workers(2, 1, 2, repeat % 2 == 0, [&](Range) {
            ++arrived;
            while (arrived < 2) {
                std::this_thread::yield();
            }
        });
        CHECK(arrived == 2);
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
}

TEST_CASE("the caller finishes the blocks of a worker that is stuck, and waits for the one it has begun",
          "[worker_pool]") {
    constexpr int64_t kItems = 64;
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<int64_t> by_caller{0};
    std::atomic<int64_t> by_worker{0};
    std::atomic<bool> worker_began{false};
    run_on_workers(kItems, 1, 2, true, [&](Range range) {
        const int64_t items = range.end - range.begin;
        if (std::this_thread::get_id() == caller) {
            wait_until(worker_began);
            by_caller += items;
            return;
        }
        worker_began = true;
        by_worker += items;
        while (by_caller + by_worker < kItems) {  // stuck until all else is done
            std::this_thread::yield();
        }
    });
    CHECK(by_caller + by_worker == kItems);
    CHECK(by_worker == kItems / 4);  // one block: half of its part
}

TEST_CASE("the first part is the caller's, and every thread's blocks come in order", "[worker_pool]") {
    const std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> caller_began{false};
    std::atomic<bool> worker_began{false};
    std::vector<int64_t> begins;
    run_on_workers(800, 1, 2, true, [&](Range range) {
        if (std::this_thread::get_id() == caller) {
            begins.push_back(range.begin);
            caller_began = true;
            wait_until(worker_began);
            return;
        }
        worker_began = true;
        wait_until(caller_began);  // a worker that runs while the caller does not would take the caller's part as well
    });
    REQUIRE(!begins.empty());
    CHECK(begins.front() == 0);
    const auto own_end = std::find_if(begins.begin(), begins.end(), [](int64_t begin) { return begin >= 400; });
    CHECK(std::is_sorted(begins.begin(), own_end));
}

TEST_CASE("an exception of any block reaches the caller after all blocks", "[worker_pool]") {
    for (const int64_t bad : {0, 30, 50, 99}) {
        std::atomic<int64_t> items{0};
        const auto body = [&](Range range) {
            items += range.end - range.begin;
            if (range.begin <= bad && bad < range.end) {
                throw std::runtime_error("item");
            }
        };
        CHECK_THROWS_WITH(run_on_workers(100, 1, 3, true, body), TMAC_CONTAINS("item"));
        CHECK(items == 100);
    }
    CHECK_THROWS_AS(run_on_workers(100, 1, 2, true, [](Range) { throw 7; }), int);  // of every block: one is rethrown
    CHECK(wrong_items(10, 1, 2, true) == 0);
}

TEST_CASE("a region inside a region runs on the thread that asks for it", "[worker_pool]") {
    std::atomic<int64_t> items{0};
    std::atomic<int> elsewhere{0};
    run_on_workers(8, 1, 3, true, [&](Range outer) {
        const std::thread::id thread = std::this_thread::get_id();
        for (int64_t i = outer.begin; i < outer.end; ++i) {
            run_on_workers(10, 1, 3, true, [&](Range inner) {
                items += inner.end - inner.begin;
                elsewhere += std::this_thread::get_id() == thread ? 0 : 1;
            });
        }
    });
    CHECK(items == 80);
    CHECK(elsewhere == 0);
}

TEST_CASE("a second caller runs its region alone while the workers are taken", "[worker_pool]") {
    std::atomic<bool> first_runs{false};
    std::atomic<bool> second_done{false};
    std::thread first([&] {
        run_on_workers(2, 1, 2, true, [&](Range) {
            first_runs = true;
            wait_until(second_done);
        });
    });
    wait_until(first_runs);
    std::set<std::thread::id> ids;
    run_on_workers(100, 1, 2, true, [&ids](Range) { ids.insert(std::this_thread::get_id()); });
    second_done = true;
    first.join();
    CHECK(ids == std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST_CASE("regions of many callers do not mix", "[worker_pool]") {
    std::atomic<int64_t> wrong{0};
    std::vector<std::thread> callers;
    for (int i = 0; i < 6; ++i) {
        callers.emplace_back([&wrong, i] {
            for (int repeat = 0; repeat < 300; ++repeat) {
                wrong += wrong_items(50 + i, 1 + i % 2, 2 + repeat % 2, repeat % 2 == 0);
            }
        });
    }
    for (std::thread& caller : callers) {
        caller.join();
    }
    CHECK(wrong == 0);
}
