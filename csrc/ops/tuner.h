#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/quant_spec.h"
#include "kernels/registry.h"

namespace tmac {

/// What to measure: calls of each of these numbers of tokens, `runs` times.
struct TimingPlan {
    std::vector<int64_t> tokens;
    int runs = 7;
    int num_threads = 0;  ///< 0: get_num_threads()
};

inline constexpr int64_t kMaxTimedColumns = int64_t{1} << 18;
inline constexpr int64_t kMaxTimedTokens = 512;

/// One choice of kernels and the seconds that a call took.
struct KernelTimes {
    KernelPair kernels;
    std::vector<std::vector<double>> seconds;  ///< [plan.tokens][samples]
};

/// Times every pair over a weight [n, k] of random codes, whose values do not matter to a kernel. Up to 16 tokens are
/// decoded, more are prompts, as in `linear`; the preparation of the activations is part of the time.
///
/// - Copies of the weight are cycled, so that a call reads from memory: for each layout four times the last-level
///   cache, for all together at most 512 MiB, and at least one copy.
/// - The samples of the pairs alternate; each is the median over calls that fill about two milliseconds, of at least
///   three if they are short. A call during which the process was preempted is taken again, up to four times.
/// - A pair that takes over four times as long as the best at one token is out of the race and gets one sample.
/// - Of a weight of over 2^26 values, 32 MiB of codes or 2^16 rows the first rows are timed, and a call that would take
///   over 0.15 s is timed with fewer tokens; the seconds are those of the whole, counted up in proportion.
///
/// `checkpoint` is called between calls, several times a second, from the calling thread; what it throws ends the
/// measurement.
/// Throws std::invalid_argument on numbers out of range.
std::vector<KernelTimes> time_kernels(const QuantSpec& spec, int64_t n, int64_t k, const std::vector<KernelPair>& pairs,
                                      const TimingPlan& plan, const std::function<void()>& checkpoint);

}  // namespace tmac
