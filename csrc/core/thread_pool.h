#pragma once

#include <cstdint>
#include <functional>

#include "core/range.h"

namespace tmac {

/// CPUs that this process may use: affinity, less a cgroup quota. At least 1.
int default_num_threads();

/// What runs regions of more than one thread.
enum class ThreadBackend { own, openmp };

/// The backend of the next region. Where torch is loaded, OpenMP: torch's idle workers spin, and a second pool beside
/// them would fight them for the CPUs. Elsewhere our own workers, which do not let a busy CPU stall the step; on
/// systems where this code cannot tell whether torch is loaded, OpenMP.
ThreadBackend thread_backend();

/// To be called once when the library is loaded. Threads do not survive a fork, and a child would wait for them for
/// ever: a child of a process that may have used them runs on one thread.
void watch_forks();

/// Threads for regions that do not say otherwise; 0 goes back to default_num_threads(). Throws on a negative number,
/// and, in a child forked from a process that had used threads, on more than one.
void set_num_threads(int num_threads);
int get_num_threads();

/// Runs `body` over [0, count) in contiguous ranges, one or several per thread, and returns when all are done.
/// `num_threads` = 0 is get_num_threads(). A range starts at a multiple of `grain`. The first exception of any thread
/// is rethrown. May be called from several threads at once; a call inside `body` runs on one thread.
void parallel_for(int64_t count, int64_t grain, int num_threads, const std::function<void(Range)>& body);

}  // namespace tmac
