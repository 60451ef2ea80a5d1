#pragma once

#include <cstdint>

namespace tmac {

enum class DType : uint8_t { f32, f16, bf16 };
inline constexpr int kNumDTypes = 3;

/// A borrowed matrix [rows, columns]; the last dimension is contiguous, rows are `stride` elements apart.
struct Tensor {
    void* data;
    DType type;
    int64_t rows;
    int64_t columns;
    int64_t stride;
};

}  // namespace tmac
