#pragma once

#include <string>

namespace tmac {

/// Operations per second, a multiply-add counted as two, of a loop that only takes int8 dot products in registers with
/// the instructions that the kernels of `isa` have for it: what a benchmark holds a kernel's arithmetic against. The
/// fastest of some runs that take about a millisecond together, on `num_threads` threads (0: get_num_threads()).
/// Throws std::invalid_argument for an unknown instruction set and for one that this CPU or build cannot run.
double dot_peak(const std::string& isa, int num_threads);

}  // namespace tmac
