#pragma once

#include <cstdint>

namespace tmac {

/// Seconds that a region of `num_threads` threads (0: get_num_threads()) takes in which each does nothing but wait
/// until all have come: what starting and joining them costs. The mean over `repeats` regions in a row, for benchmarks.
double barrier_seconds(int64_t repeats, int num_threads);

}  // namespace tmac
