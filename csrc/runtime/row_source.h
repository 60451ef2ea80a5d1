#pragma once

#include <cstdint>

#include "ops/tensor.h"

namespace tmac {

/// Rows of a matrix that is not in memory.
class RowSource {
public:
    virtual ~RowSource() = default;

    /// Row ids[i] of the matrix as row i of `y`, f32; the bits are those of the matrix in memory.
    virtual void read(const int64_t* ids, const Tensor& y, int num_threads) const = 0;
};

}  // namespace tmac
