#pragma once

#include <chrono>

#include "bindings/bindings.h"

namespace tmac {

/// Lets Ctrl-C through, at most every fiftieth of a second: asking costs the GIL. For use while it is released.
class SignalCheck {
public:
    void operator()() {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(20)) {
            return;
        }
        const py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) {
            throw py::error_already_set();
        }
        last_ = std::chrono::steady_clock::now();
    }

private:
    std::chrono::steady_clock::time_point last_{};
};

}  // namespace tmac
