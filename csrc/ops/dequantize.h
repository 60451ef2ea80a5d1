#pragma once

#include <cstdint>
#include <vector>

#include "layout/tiles.h"
#include "ops/group_moves.h"
#include "ops/weight_view.h"

namespace tmac {

/// The codes of a weight as csrc/layout reads them.
TiledCodes tiled_codes(const WeightView& view);

/// The act groups of a weight, filled up as its layout wants them.
std::vector<ActGroup> act_groups_of(const WeightView& view);

/// Reads rows one at a time, and no others; for one thread. The view outlives it.
class RowReader {
public:
    explicit RowReader(const WeightView& view);

    void read(int64_t row);

    /// Of the row that was read, [k], in the weight's own order of columns.
    const uint8_t* codes() const { return codes_.data(); }
    /// A group's scale, and its zero or offset; two levels multiplied out.
    float scale(int64_t group) const;
    float zero(int64_t group) const;

private:
    size_t super_index(int64_t group) const;

    const WeightView& weight_;
    std::vector<ActGroup> act_groups_;
    std::vector<uint8_t> planes_;  ///< of the row
    std::vector<uint8_t> codes_;
    std::vector<uint8_t> scales_;
    std::vector<uint8_t> zeros_;
    std::vector<uint16_t> super_scales_;
    std::vector<uint16_t> super_offsets_;
};

/// Dequantizes rows one at a time, reading no others; for one thread. The view outlives it.
class RowDequantizer {
public:
    explicit RowDequantizer(const WeightView& view);

    /// Row `row` of w[n, k] in f32, in the checkpoint's column order: subtract or multiply, then multiply or add, each
    /// rounded.
    void run(int64_t row, float* out);

private:
    const WeightView& weight_;
    RowReader reader_;
    std::vector<float> permuted_;  ///< [k] in the weight's own order, where that is another one
};

/// All rows.
void dequantize(const WeightView& weight, float* out, int num_threads);

}  // namespace tmac
