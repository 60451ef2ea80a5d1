#pragma once

namespace tmac {

/// Gives memory that has been freed, but is kept for later, back to the system, where the C library can.
void release_memory();

}  // namespace tmac
