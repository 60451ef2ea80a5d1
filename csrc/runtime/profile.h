#pragma once

#include <array>
#include <chrono>
#include <cstdint>

namespace tmac {

/// Parts of a forward pass. `input`: what products read is made and encoded (norms, gates, the end of attention); the
/// products themselves count where they belong.
enum class Stage : uint8_t { embedding, input, qkv, attention, output, gate_up, down, experts, head };
inline constexpr int kNumStages = 9;
inline constexpr const char* kStageNames[kNumStages] = {"embedding", "input", "qkv",     "attention", "output",
                                                        "gate_up",   "down",  "experts", "head"};

/// Seconds by stage, while it is on.
struct Profile {
    bool on = false;
    std::array<double, kNumStages> seconds{};
    double total = 0;
    int64_t passes = 0;
    int64_t rows = 0;
};

/// Adds the time that it lives to a stage.
class StageTimer {
public:
    StageTimer(Profile& profile, Stage stage) : profile_(profile), stage_(stage) {
        if (profile.on) {
            begin_ = std::chrono::steady_clock::now();
        }
    }
    StageTimer(const StageTimer&) = delete;
    StageTimer& operator=(const StageTimer&) = delete;
    ~StageTimer() {
        if (profile_.on) {
            const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin_;
            profile_.seconds[static_cast<size_t>(stage_)] += passed.count();
        }
    }

private:
    Profile& profile_;
    Stage stage_;
    std::chrono::steady_clock::time_point begin_{};
};

}  // namespace tmac
