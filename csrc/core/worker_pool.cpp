#include "core/worker_pool.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>

#include "core/portable.h"

#if defined(__linux__)
#include <pthread.h>
#endif

namespace tmac {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kMaxThreads = 512;
constexpr int64_t kMaxPieces = int64_t{1} << 31;  ///< a piece's index has 32 bits
constexpr int64_t kBlocksPerThread = 8;           ///< if all were of the least size
constexpr auto kWorkerSpin = std::chrono::microseconds(100);
constexpr auto kCallerSpin = std::chrono::microseconds(30);
constexpr auto kYieldInterval = std::chrono::milliseconds(1);

/// What a seat's worker does. The caller opens and closes a region at every seat, the worker joins an open one; neither
/// can miss the other, because each of these steps is one exchange of this word:
///
///     idle, asleep --caller--> open --worker--> joined --worker--> idle       idle --worker--> asleep
///                              open --caller--> idle  (the worker did not come: its part is done already)
///                                               joined --caller--> awaited --worker--> idle  (and wakes the caller)
///
/// What the caller wrote before `open` is seen by who joins, and what a worker wrote is seen by who reads its `idle`.
/// A worker that takes one region's `open` for another's does no harm: it reads the region only after it has joined.
enum Phase : uint32_t { kIdle, kAsleep, kOpen, kJoined, kAwaited };

/// A thread's place: two cache lines, since CPUs fetch lines in pairs.
struct alignas(128) Seat {
    std::atomic<uint32_t> phase{kIdle};
    std::atomic<uint64_t> left{0};  ///< pieces of its part that nobody has taken: begin << 32 | end
};

/// Written by the caller while every seat is idle or asleep.
struct Region {
    const std::function<void(Range)>* body = nullptr;
    int64_t count = 0;
    int64_t piece = 0;   ///< items
    uint32_t least = 0;  ///< pieces of the smallest block
    int threads = 0;
    bool spin = false;
};

struct Pool {
    std::array<Seat, kMaxThreads> seats;  ///< the first is the caller's
    alignas(128) Region region;
    alignas(128) std::atomic<bool> busy{false};
    int workers = 0;
    std::mutex error_mutex;
    std::exception_ptr error;
};

/// Never destroyed: the workers look at it until the process ends.
Pool& pool() {
    static Pool& instance = *new Pool;
    return instance;
}

/// Half of what is left of a part, from its front for its owner, so that a thread reads forward, from its back for the
/// others. The blocks become smaller towards the end: few calls, and little to wait for.
bool take(std::atomic<uint64_t>& left, uint32_t least, bool owner, Range& pieces) {
    uint64_t seen = left.load(std::memory_order_relaxed);
    for (;;) {
        const uint64_t begin = seen >> 32;
        const uint64_t end = seen & UINT32_MAX;
        if (begin >= end) {
            return false;
        }
        const uint64_t size = std::min(end - begin, std::max<uint64_t>(least, (end - begin + 1) / 2));
        const uint64_t rest = owner ? (begin + size) << 32 | end : begin << 32 | (end - size);
        if (left.compare_exchange_weak(seen, rest, std::memory_order_relaxed)) {
            const uint64_t first = owner ? begin : end - size;
            pieces = {static_cast<int64_t>(first), static_cast<int64_t>(first + size)};
            return true;
        }
    }
}

void run_block(Pool& pool, Range pieces) {
    const Region& region = pool.region;
    try {
        (*region.body)({pieces.begin * region.piece, std::min(region.count, pieces.end * region.piece)});
    } catch (...) {
        const std::lock_guard<std::mutex> lock(pool.error_mutex);
        if (!pool.error) {
            pool.error = std::current_exception();
        }
    }
}

/// The blocks of the own part, then what is left of the others'.
void run_blocks(Pool& pool, int own) {
    const int threads = pool.region.threads;
    Range pieces{};
    for (int i = 0; i < threads; ++i) {
        Seat& seat = pool.seats[static_cast<size_t>((own + i) % threads)];
        while (take(seat.left, pool.region.least, i == 0, pieces)) {
            run_block(pool, pieces);
        }
    }
}

/// Returns true when `done` does, false when `limit` has passed.
template <class Done>
bool spin_until(Clock::time_point begin, Clock::duration limit, Done done) {
    do {
        for (int i = 0; i < 16; ++i) {
            if (done()) {
                return true;
            }
            TMAC_PAUSE();
        }
    } while (Clock::now() - begin < limit);
    return false;
}

/// Returns when a region is open, and at times before.
void wait_for_region(std::atomic<uint32_t>& phase, bool spin, Clock::time_point& last_yield) {
    Clock::time_point now = Clock::now();
    if (now - last_yield >= kYieldInterval) {
        // Where another process wants this CPU, it should have it now, while nobody waits for this thread, rather than
        // in the middle of a block.
        std::this_thread::yield();
        now = last_yield = Clock::now();
    }
    const auto open = [&phase] { return phase.load(std::memory_order_relaxed) == kOpen; };
    uint32_t idle = kIdle;
    if (!(spin && spin_until(now, kWorkerSpin, open)) &&
        phase.compare_exchange_strong(idle, kAsleep, std::memory_order_relaxed)) {
        phase.wait(kAsleep, std::memory_order_relaxed);
        last_yield = Clock::now();
    }
}

void work(Pool& pool, int own) {
    std::atomic<uint32_t>& phase = pool.seats[static_cast<size_t>(own)].phase;
    Clock::time_point last_yield = Clock::now();
    bool spin = false;
    for (;;) {
        wait_for_region(phase, spin, last_yield);
        uint32_t open = kOpen;
        if (!phase.compare_exchange_strong(open, kJoined, std::memory_order_acquire, std::memory_order_relaxed)) {
            continue;
        }
        spin = pool.region.spin;
        run_blocks(pool, own);
        if (phase.exchange(kIdle, std::memory_order_release) == kAwaited) {
            phase.notify_one();
        }
    }
}

/// Threads there are for a region: fewer than wanted where the system refuses more.
int start_workers(Pool& pool, int threads) {
    threads = std::min(threads, kMaxThreads);
    try {
        for (; pool.workers < threads - 1; ++pool.workers) {
            std::thread worker(work, std::ref(pool), pool.workers + 1);
#if defined(__linux__)
            pthread_setname_np(worker.native_handle(), "tmac-worker");
#endif
            worker.detach();
        }
    } catch (const std::exception&) {
        return pool.workers + 1;
    }
    return threads;
}

void open_region(Pool& pool, int64_t pieces) {
    const int threads = pool.region.threads;
    for (int64_t i = 0; i < threads; ++i) {
        const auto begin = static_cast<uint64_t>(pieces * i / threads);
        const auto end = static_cast<uint64_t>(pieces * (i + 1) / threads);
        pool.seats[static_cast<size_t>(i)].left.store(begin << 32 | end, std::memory_order_relaxed);
    }
    for (int i = 1; i < threads; ++i) {
        std::atomic<uint32_t>& phase = pool.seats[static_cast<size_t>(i)].phase;
        if (phase.exchange(kOpen, std::memory_order_release) == kAsleep) {
            phase.notify_one();
        }
    }
}

/// Waits for the worker if it has joined. A caller that waits long sleeps: its CPU may be the one that the worker
/// needs.
void close_seat(std::atomic<uint32_t>& phase, bool spin) {
    uint32_t seen = kOpen;
    if (phase.compare_exchange_strong(seen, kIdle, std::memory_order_acquire)) {
        return;
    }
    const auto left = [&phase] { return phase.load(std::memory_order_acquire) == kIdle; };
    if (left() || (spin && spin_until(Clock::now(), kCallerSpin, left))) {
        return;
    }
    seen = kJoined;
    if (phase.compare_exchange_strong(seen, kAwaited, std::memory_order_acquire)) {
        phase.wait(kAwaited, std::memory_order_acquire);
    }
}

}  // namespace

void run_on_workers(int64_t count, int64_t grain, int threads, bool spin, const std::function<void(Range)>& body) {
    Pool& workers = pool();
    if (workers.busy.exchange(true, std::memory_order_acquire)) {
        body({0, count});
        return;
    }
    const int64_t grains = (count + grain - 1) / grain;
    const int64_t piece = grain * (1 + grains / kMaxPieces);
    const int64_t pieces = (count + piece - 1) / piece;
    const int team = start_workers(workers, threads);
    const int64_t least = std::max<int64_t>(1, pieces / team / kBlocksPerThread);
    workers.region = {&body, count, piece, static_cast<uint32_t>(least), team, spin};
    open_region(workers, pieces);
    run_blocks(workers, 0);
    for (int i = 1; i < team; ++i) {
        close_seat(workers.seats[static_cast<size_t>(i)].phase, spin);
    }
    const std::exception_ptr error = std::exchange(workers.error, nullptr);
    workers.busy.store(false, std::memory_order_release);
    if (error) {
        std::rethrow_exception(error);
    }
}

}  // namespace tmac
