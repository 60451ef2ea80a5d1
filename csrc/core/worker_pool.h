#pragma once

#include <cstdint>
#include <functional>

#include "core/range.h"

namespace tmac {

/// Runs `body` over [0, count) on the caller and up to `threads` - 1 workers of our own, and returns when all is done.
/// Every thread has a contiguous part, cut into blocks that start at multiples of `grain`; whoever is done with its
/// part takes blocks from the end of the others', so that the caller waits for no worker that has not started, and at
/// most for the one block that a worker has begun. `spin`: every thread has a CPU, so threads that wait stay awake for
/// a moment. The first exception is rethrown when every block is done. A caller that finds the workers taken by another
/// one, or by the region it is itself part of, runs `body` alone. Not for a process that was forked after a first call.
void run_on_workers(int64_t count, int64_t grain, int threads, bool spin, const std::function<void(Range)>& body);

}  // namespace tmac
