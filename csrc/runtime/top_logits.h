#pragma once

#include <cstdint>
#include <vector>

namespace tmac {

/// A token that may be chosen. `weight` is its probability but for a factor that all share.
struct Candidate {
    float logit;
    int32_t id;
    float weight = 0.0F;
};

/// The order of candidates: the larger logit first, of equal ones the lower id.
inline bool precedes(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/// The tokens whose logit is at least the `count`-th largest, by id: more than `count` where logits are equal. Leaves
/// -inf out. Reads the logits once and sorts nothing; there is no NaN among them. 1 <= count.
void select_top(const float* logits, int64_t vocab, int64_t count, std::vector<Candidate>& out);

/// Keeps those before which candidates of less than `mass` altogether come, and the first one always; by id as before.
/// Sorts nothing: expected time is linear.
void keep_mass(std::vector<Candidate>& candidates, double mass);

}  // namespace tmac
