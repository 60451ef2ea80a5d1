#include "core/thread_pool.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <fstream>
#include <mutex>
#include <string>
#include <thread>

#include "core/check.h"
#include "core/worker_pool.h"

#if defined(__linux__)
#include <link.h>
#include <sched.h>

#include <cstring>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace tmac {
namespace {

constexpr int kMaxThreads = 512;  ///< libgomp ends the process where the system refuses it a thread

std::atomic<int> requested_threads{0};
std::atomic<bool> used_threads{false};
std::atomic<bool> forked_after_use{false};

#if defined(__linux__)

constexpr bool kSeesTorch = true;

/// Libraries loaded since the process began, as the loader counts them.
unsigned long long count_of_loads() {
    unsigned long long loads = 0;
    const auto first = [](dl_phdr_info* library, size_t, void* out) {
        *static_cast<unsigned long long*>(out) = library->dlpi_adds;
        return 1;
    };
    dl_iterate_phdr(first, &loads);
    return loads;
}

bool find_torch() {
    const auto is_torch = [](dl_phdr_info* library, size_t, void*) {
        return library->dlpi_name != nullptr && std::strstr(library->dlpi_name, "libtorch_cpu.so") != nullptr ? 1 : 0;
    };
    return dl_iterate_phdr(is_torch, nullptr) != 0;
}

/// torch stays loaded once it is, and as long as it is not, the names of the libraries are read only when one was
/// added: asked before every region, this costs a look at the loader's counter.
bool torch_is_loaded() {
    static std::atomic<bool> found{false};
    static std::atomic<unsigned long long> loads_seen{0};
    if (found.load(std::memory_order_relaxed)) {
        return true;
    }
    const unsigned long long loads = count_of_loads();
    if (loads == loads_seen.load(std::memory_order_relaxed)) {
        return false;
    }
    if (find_torch()) {
        found.store(true, std::memory_order_relaxed);
        return true;
    }
    loads_seen.store(loads, std::memory_order_relaxed);
    return false;
}

#else

constexpr bool kSeesTorch = false;

bool torch_is_loaded() { return false; }

#endif

int affinity_cpus() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
    return static_cast<int>(std::thread::hardware_concurrency());
}

/// CPUs of the cgroup's quota, rounded up; 0 where there is none.
int quota_cpus() {
    double quota = 0;
    double period = 0;
    std::string word;
    if (std::ifstream v2("/sys/fs/cgroup/cpu.max"); v2 >> word >> period && word != "max") {
        quota = std::strtod(word.c_str(), nullptr);
    } else if (std::ifstream v1("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"); v1 >> quota) {
        std::ifstream("/sys/fs/cgroup/cpu/cpu.cfs_period_us") >> period;
    }
    return quota > 0 && period > 0 ? static_cast<int>((quota + period - 1) / period) : 0;
}

int threads_to_use(int num_threads, int64_t pieces) {
    if (forked_after_use.load()) {
        return 1;
    }
    const int wanted = std::min(num_threads > 0 ? num_threads : get_num_threads(), kMaxThreads);
    return static_cast<int>(std::clamp<int64_t>(pieces, 1, wanted));
}

/// One range per thread of the runtime that torch uses.
void run_on_openmp(int64_t count, int64_t grain, int threads, const std::function<void(Range)>& body) {
    const int64_t pieces = (count + grain - 1) / grain;
    std::exception_ptr error;
    std::mutex error_mutex;
#pragma omp parallel num_threads(threads)
    {
        const int64_t team = omp_get_num_threads();  // fewer than asked for when the system is short of threads
        const int64_t index = omp_get_thread_num();
        const int64_t begin = pieces * index / team * grain;
        const int64_t end = std::min(count, pieces * (index + 1) / team * grain);
        if (begin < end) {
            try {
                body({begin, end});
            } catch (...) {
                const std::lock_guard<std::mutex> lock(error_mutex);
                if (!error) {
                    error = std::current_exception();
                }
            }
        }
    }
    if (error) {
        std::rethrow_exception(error);
    }
}

}  // namespace

ThreadBackend thread_backend() { return !kSeesTorch || torch_is_loaded() ? ThreadBackend::openmp : ThreadBackend::own; }

void watch_forks() {
#if defined(__unix__) || defined(__APPLE__)
    static std::once_flag once;
    std::call_once(once, [] {
        const auto before = [] { used_threads.store(used_threads.load() || torch_is_loaded()); };
        const auto in_child = [] { forked_after_use.store(used_threads.load()); };
        pthread_atfork(before, nullptr, in_child);
    });
#endif
}

int default_num_threads() {
    static const int threads = [] {
        const int quota = quota_cpus();
        const int cpus = std::max(1, affinity_cpus());
        return quota > 0 ? std::min(cpus, quota) : cpus;
    }();
    return threads;
}

void set_num_threads(int num_threads) {
    TMAC_CHECK(num_threads >= 0, "[set_num_threads] num_threads must not be negative, got ", num_threads);
    TMAC_CHECK(num_threads <= 1 || !forked_after_use.load(),
               "[set_num_threads] this process was forked from one that had used threads and has one thread; start it "
               "with the 'spawn' or 'forkserver' method for more");
    requested_threads.store(num_threads);
}

int get_num_threads() {
    if (forked_after_use.load()) {
        return 1;
    }
    const int requested = requested_threads.load();
    return requested > 0 ? requested : default_num_threads();
}

void parallel_for(int64_t count, int64_t grain, int num_threads, const std::function<void(Range)>& body) {
    if (count <= 0) {
        return;
    }
    const int threads = threads_to_use(num_threads, (count + grain - 1) / grain);
    if (threads == 1) {
        body({0, count});
        return;
    }
    used_threads.store(true);
    if (thread_backend() == ThreadBackend::own) {
        run_on_workers(count, grain, threads, threads <= default_num_threads(), body);
    } else {
        run_on_openmp(count, grain, threads, body);
    }
}

}  // namespace tmac
