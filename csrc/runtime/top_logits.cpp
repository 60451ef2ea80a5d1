#include "runtime/top_logits.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "kernels/registry.h"

namespace tmac {
namespace {

constexpr int64_t kBlock = 256;  ///< logits that are passed over at once where none is large enough

/// Drops what is less than the `count`-th largest, which is returned.
float drop_below(int64_t count, std::vector<Candidate>& candidates, std::vector<float>& logits) {
    logits.clear();
    for (const Candidate& candidate : candidates) {
        logits.push_back(candidate.logit);
    }
    const auto nth = logits.begin() + (count - 1);
    std::nth_element(logits.begin(), nth, logits.end(), std::greater<>());
    const float least = *nth;
    std::erase_if(candidates, [&](const Candidate& candidate) { return candidate.logit < least; });
    return least;
}

/// The middle one of three, so that candidates in order are no bad case.
const Candidate& pivot_of(const std::vector<Candidate>& candidates) {
    const Candidate& a = candidates.front();
    const Candidate& b = candidates[candidates.size() / 2];
    const Candidate& c = candidates.back();
    if (precedes(a, b)) {
        return precedes(b, c) ? b : precedes(a, c) ? c : a;
    }
    return precedes(a, c) ? a : precedes(b, c) ? c : b;
}

}  // namespace

void select_top(const float* logits, int64_t vocab, int64_t count, std::vector<Candidate>& out) {
    const VectorOps& ops = vector_ops();
    std::vector<float> scratch;
    out.clear();
    float least = std::numeric_limits<float>::lowest();
    auto limit = static_cast<size_t>(count + std::max(count, kBlock));
    for (int64_t begin = 0; begin < vocab; begin += kBlock) {
        const int64_t end = std::min(begin + kBlock, vocab);
        if (ops.max(logits + begin, end - begin) < least) {
            continue;
        }
        for (int64_t i = begin; i < end; ++i) {
            if (logits[i] >= least) {
                out.push_back({.logit = logits[i], .id = static_cast<int32_t>(i)});
            }
        }
        if (out.size() > limit) {
            least = drop_below(count, out, scratch);
            limit = std::max(limit, 2 * out.size());
        }
    }
    if (static_cast<int64_t>(out.size()) > count) {
        drop_below(count, out, scratch);
    }
}

void keep_mass(std::vector<Candidate>& candidates, double mass) {
    // Quickselect by weight. The partition keeps the order, so that sums are the same with every standard library.
    // `work` holds what may still be kept: `taken` comes before its first one, and is less than `mass`.
    std::vector<Candidate> work = candidates;
    std::vector<Candidate> before;
    std::vector<Candidate> after;
    Candidate last = *std::min_element(work.begin(), work.end(), precedes);
    double taken = 0.0;
    while (!work.empty() && taken < mass) {
        const Candidate pivot = pivot_of(work);
        double before_mass = 0.0;
        before.clear();
        after.clear();
        for (const Candidate& candidate : work) {
            if (precedes(candidate, pivot)) {
                before.push_back(candidate);
                before_mass += static_cast<double>(candidate.weight);
            } else if (precedes(pivot, candidate)) {
                after.push_back(candidate);
            }
        }
        if (!before.empty() && taken + before_mass >= mass) {
            work.swap(before);
            continue;
        }
        last = pivot;
        taken += before_mass + static_cast<double>(pivot.weight);
        work.swap(after);
    }
    std::erase_if(candidates, [&](const Candidate& candidate) { return precedes(last, candidate); });
}

}  // namespace tmac
