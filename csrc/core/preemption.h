#pragma once

#include <cstdint>

namespace tmac {

/// How often a thread of this process was taken off its CPU for another one. 0 where the system does not count it:
/// then no call is known to be disturbed.
int64_t preemptions();

}  // namespace tmac
