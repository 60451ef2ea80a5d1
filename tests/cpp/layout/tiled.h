#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "core/act_groups.h"
#include "core/layout.h"
#include "layout/tiles.h"

namespace tmac {

/// Memory for the codes of a weight in a layout, zeroed.
struct Tiled {
    Layout layout;
    int32_t bits;
    int64_t n;
    int64_t k;
    std::vector<ActGroup> act_groups;
    int64_t padded_k;
    int64_t region_stride;
    std::vector<uint8_t> bytes;

    Tiled(Layout of, int32_t width, int64_t rows, int64_t columns, int32_t group_size)
        : layout(of), bits(width), n(rows), k(columns) {
        QuantSpec spec;
        spec.bits = static_cast<uint8_t>(bits);
        spec.group_size = group_size;
        const LayoutShape shape = layout_shape(layout, bits);
        act_groups = make_act_groups(spec, k, shape.k_chunk);
        padded_k = padded_columns(spec, k, shape.k_chunk);
        const int64_t chunks = (n + shape.n_tile - 1) / shape.n_tile * (padded_k / shape.k_chunk);
        const int64_t plane = n * ((k + 7) / 8);
        region_stride = layout == Layout::planes ? plane : chunks * shape.chunk_bytes;
        const int64_t last = layout == Layout::planes ? plane : chunks * shape.last_bytes;
        bytes.resize(static_cast<size_t>(region_stride * (shape.num_regions - 1) + last));
    }

    TiledCodes codes() { return {layout, bytes.data(), regions_apart(region_stride), padded_k, n}; }
};

/// The widths that a layout is made for.
inline std::pair<int32_t, int32_t> widths_of(Layout layout) {
    switch (layout) {
        case Layout::nibbles:
        case Layout::wide_nibbles:
            return {4, 8};
        case Layout::crumbs:
            return {2, 3};
        case Layout::trits:
            return {2, 2};
        default:
            return {1, 8};
    }
}

}  // namespace tmac
