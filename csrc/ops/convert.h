#pragma once

#include "core/half.h"
#include "ops/tensor.h"

namespace tmac {

/// Row `row` of `x` as f32, exact.
inline void load_row(const Tensor& x, int64_t row, float* out) {
    const int64_t first = row * x.stride;
    for (int64_t i = 0; i < x.columns; ++i) {
        switch (x.type) {
            case DType::f32:
                out[i] = static_cast<const float*>(x.data)[first + i];
                break;
            case DType::f16:
                out[i] = f16_to_f32(static_cast<const uint16_t*>(x.data)[first + i]);
                break;
            case DType::bf16:
                out[i] = bf16_to_f32(static_cast<const uint16_t*>(x.data)[first + i]);
                break;
        }
    }
}

/// Row `row` of `x` as f32: where it lies if it is, else in `scratch`, [columns].
inline const float* row_of(const Tensor& x, int64_t row, float* scratch) {
    if (x.type == DType::f32) {
        return static_cast<const float*>(x.data) + row * x.stride;
    }
    load_row(x, row, scratch);
    return scratch;
}

/// Columns [begin, end) of row `row` of `y`, rounded to its type.
inline void store_columns(const Tensor& y, int64_t row, int64_t begin, int64_t end, const float* values) {
    const int64_t first = row * y.stride;
    for (int64_t i = begin; i < end; ++i) {
        switch (y.type) {
            case DType::f32:
                static_cast<float*>(y.data)[first + i] = values[i];
                break;
            case DType::f16:
                static_cast<uint16_t*>(y.data)[first + i] = f32_to_f16(values[i]);
                break;
            case DType::bf16:
                static_cast<uint16_t*>(y.data)[first + i] = f32_to_bf16(values[i]);
                break;
        }
    }
}

}  // namespace tmac
