#pragma once

#include <cstdint>

namespace tmac {

/// Canonical planes, the file format: [bits][n][ceil(k/8)], most significant plane first, bit i of a byte = column
/// 8j+i.
struct PlanesView {
    const uint8_t* data;
    int32_t bits;
    int64_t n;
    int64_t k;

    int64_t row_bytes() const { return (k + 7) / 8; }
    const uint8_t* row(int32_t plane, int64_t n_index) const { return data + (plane * n + n_index) * row_bytes(); }
};

/// One row of codes u8[k] to its planes; `planes` is the first plane of the row, `plane_stride` bytes between planes.
void codes_to_planes(const uint8_t* codes, int64_t k, int32_t bits, uint8_t* planes, int64_t plane_stride);

/// One row of planes back to codes u8[k].
void planes_to_codes(const uint8_t* planes, int64_t plane_stride, int64_t k, int32_t bits, uint8_t* codes);

}  // namespace tmac
