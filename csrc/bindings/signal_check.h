#pragma once

#include <chrono>

#include "bindings/bindings.h"

namespace tmac {

/// Lets Ctrl-C through, every fiftieth of a second: asking costs the GIL, for which other threads may make it wait.
class SignalCheck {
public:
    explicit SignalCheck(ReleasedGil& released) : released_(released) {}

    void operator()() {
        if (Clock::now() - last_ >= std::chrono::milliseconds(20)) {
            released_.check_signals();
            last_ = Clock::now();
        }
    }

private:
    using Clock = std::chrono::steady_clock;

    ReleasedGil& released_;
    Clock::time_point last_ = Clock::now();
};

}  // namespace tmac
