#pragma once

#include <cstdint>

namespace tmac {

/// Half-open range of work items for one thread.
struct Range {
    int64_t begin;
    int64_t end;
};

/// The least multiple of `multiple` that is not below `value`, which is not negative.
constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace tmac
