#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace tmac {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

/// A valid request that no kernel of this build, CPU or forced selection can serve.
struct UnsupportedSpec : std::runtime_error {
    using std::runtime_error::runtime_error;
};

}  // namespace tmac

/// Throws std::invalid_argument (ValueError in Python) with the concatenated message when `condition` is false.
#define TMAC_CHECK(condition, ...)       \
    do {                                 \
        if (!(condition)) [[unlikely]] { \
            ::tmac::fail(__VA_ARGS__);   \
        }                                \
    } while (false)
