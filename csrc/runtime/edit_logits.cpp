#include "runtime/edit_logits.h"

#include <algorithm>
#include <limits>

#include "core/check.h"

namespace tmac {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

/// How often each token was generated. One array for all sequences of a thread, all zero between calls.
struct Counts {
    static constexpr int32_t kSeen = 1 << 30;  ///< beside the count: the token is in the history

    std::vector<int32_t> of;   ///< [vocab]
    std::vector<int32_t> ids;  ///< of tokens in the history, each once
};

float penalized(float logit, const Penalties& penalties, int32_t count) {
    if (penalties.repetition != 1.0F) {
        logit = logit < 0.0F ? logit * penalties.repetition : logit / penalties.repetition;
    }
    if (count > 0) {
        logit = logit - penalties.frequency * static_cast<float>(count) - penalties.presence;
    }
    return logit;
}

}  // namespace

void add_bias(float* logits, int64_t vocab, const std::vector<std::pair<int32_t, float>>& bias) {
    for (const auto& [id, value] : bias) {
        TMAC_CHECK(id >= 0 && id < vocab, "logit_bias of token ", id, ": the vocabulary has ", vocab, " tokens");
        logits[id] += value;
    }
}

void penalize(float* logits, int64_t vocab, const Penalties& penalties, const int32_t* history, int64_t history_size,
              int64_t prompt_size) {
    const int32_t* negative = std::find_if(history, history + history_size, [](int32_t id) { return id < 0; });
    TMAC_CHECK(negative == history + history_size, "the history has a token ", *negative);
    thread_local Counts counts;
    if (counts.of.size() < static_cast<size_t>(vocab)) {
        counts.of.resize(static_cast<size_t>(vocab));
    }
    counts.ids.clear();
    counts.ids.reserve(static_cast<size_t>(std::min(vocab, history_size)));
    for (int64_t i = 0; i < history_size; ++i) {
        if (history[i] >= vocab) {
            continue;
        }
        int32_t& count = counts.of[static_cast<size_t>(history[i])];
        if (count == 0) {
            counts.ids.push_back(history[i]);
            count = Counts::kSeen;
        }
        count += i >= prompt_size ? 1 : 0;
    }
    for (const int32_t id : counts.ids) {
        int32_t& count = counts.of[static_cast<size_t>(id)];
        logits[id] = penalized(logits[id], penalties, count - Counts::kSeen);
        count = 0;
    }
}

bool apply_mask(float* logits, int64_t vocab, const uint32_t* mask) {
    bool any = false;
    for (int64_t begin = 0; begin < vocab; begin += 32) {
        const int64_t end = std::min(begin + 32, vocab);
        const uint32_t unused = end - begin == 32 ? 0U : ~0U << (end - begin);
        const uint32_t allowed = mask[begin / 32] & ~unused;
        any = any || allowed != 0;
        if (allowed == 0) {
            std::fill(logits + begin, logits + end, kForbidden);
        } else if ((allowed | unused) != ~0U) {
            for (int64_t i = begin; i < end; ++i) {
                logits[i] = (allowed >> (i - begin) & 1U) != 0 ? logits[i] : kForbidden;
            }
        }
    }
    return any;
}

}  // namespace tmac
