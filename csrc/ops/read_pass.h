#pragma once

#include <cstdint>

namespace tmac {

/// Reads every byte once and does nothing else: what a benchmark holds a kernel's time against. Returns the exclusive
/// or of the 64-bit words, so that no read can be left out. `streams` is 1 or 4: which is faster depends on the CPU.
uint64_t read_pass(const uint8_t* data, int64_t bytes, int streams, int num_threads);

}  // namespace tmac
