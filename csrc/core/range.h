#pragma once

#include <cstdint>

namespace tmac {

/// Half-open range of work items for one thread.
struct Range {
    int64_t begin;
    int64_t end;
};

}  // namespace tmac
