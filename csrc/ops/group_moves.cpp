#include "ops/group_moves.h"

#include <algorithm>
#include <cstring>

#include "core/layout.h"

namespace tmac {
namespace {

/// Where rows' values lie in [tiles][groups][n_tile], or in the order of bands.
struct GroupOrder {
    const PackedHeader& header;
    int64_t groups;  ///< or super-groups
    int64_t bytes;   ///< of a value

    int64_t tile_rows() const { return layout_shape(header.layout, header.spec.bits).n_tile; }

    /// Byte offset of a row's first one. The rows of a tile follow each other.
    int64_t first(int64_t row) const {
        if (in_bands(header.layout)) {
            return BandPlace(header.n, row).value(groups, 0) * bytes;
        }
        const int64_t n_tile = tile_rows();
        return (row / n_tile * groups * n_tile + row % n_tile) * bytes;
    }

    /// Bytes from one to the next.
    int64_t stride(int64_t row) const {
        return bytes * (in_bands(header.layout) ? BandPlace(header.n, row).rows : tile_rows());
    }
};

/// Values of kBytes of rows of one tile and some groups: a transpose of at most kRows x kGroups.
template <size_t kBytes>
void move_block(Direction direction, uint8_t* rows, int64_t row_stride, uint8_t* tiles, int64_t tile_stride,
                int64_t num_rows, int64_t num_groups) {
    constexpr auto kStep = static_cast<int64_t>(kBytes);
    for (int64_t group = 0; group < num_groups; ++group) {
        uint8_t* in_rows = rows + group * kStep;
        uint8_t* in_tile = tiles + group * tile_stride;
        for (int64_t row = 0; row < num_rows; ++row, in_rows += row_stride, in_tile += kStep) {
            direction == Direction::to_tiles ? std::memcpy(in_tile, in_rows, kBytes)
                                             : std::memcpy(in_rows, in_tile, kBytes);
        }
    }
}

template <size_t kBytes>
void move_values(Direction direction, uint8_t* rows, uint8_t* tiles, const GroupOrder& order, Range range,
                 int64_t first_row) {
    constexpr int64_t kGroups = 64 / static_cast<int64_t>(kBytes);  // a cache line of each row
    const int64_t row_bytes = order.groups * order.bytes;
    const int64_t tile_rows = order.tile_rows();
    for (int64_t row = range.begin; row < range.end;) {
        const int64_t count = std::min(range.end, row / tile_rows * tile_rows + tile_rows) - row;
        const int64_t stride = order.stride(row);
        for (int64_t group = 0; group < order.groups; group += kGroups) {
            move_block<kBytes>(direction, rows + (row - first_row) * row_bytes + group * order.bytes, row_bytes,
                               tiles + order.first(row) + group * stride, stride, count,
                               std::min(kGroups, order.groups - group));
        }
        row += count;
    }
}

}  // namespace

void move_groups(Direction direction, const WeightView& view, const GroupArrays& arrays, Range range,
                 int64_t first_row) {
    const auto move = [&](void* rows, int64_t part, int64_t groups, GroupType type) {
        if (rows == nullptr) {
            return;
        }
        const int64_t bytes = element_bytes(type);
        const auto move_all = bytes == 1 ? move_values<1> : bytes == 2 ? move_values<2> : move_values<4>;
        move_all(direction, static_cast<uint8_t*>(rows), const_cast<uint8_t*>(view.data + part),
                 {view.header, groups, bytes}, range, first_row);
    };
    move(arrays.scales, view.parts.scales, view.parts.num_groups, view.header.scale_type);
    move(arrays.zeros, view.parts.zeros, view.parts.num_groups, view.header.zero_type);
    move(arrays.super_scales, view.parts.super_scales, view.parts.num_super_groups, GroupType::f16);
    move(arrays.super_offsets, view.parts.super_offsets, view.parts.num_super_groups, GroupType::f16);
}

}  // namespace tmac
