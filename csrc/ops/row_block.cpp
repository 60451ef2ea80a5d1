#include "ops/row_block.h"

#include <algorithm>

#include "core/layout.h"
#include "core/range.h"

namespace tmac {

RowBlock row_block(const WeightView& weight, int64_t row) {
    const PackedHeader& header = weight.header;
    const LayoutShape shape = layout_shape(header.layout, header.spec.bits);
    const int64_t together = rows_together(header.layout, header.spec.bits);
    RowBlock block{row / together * together, header, {}, {}};
    block.header.n = std::min(together, header.n - block.first);
    block.parts = packed_parts(block.header);
    const int64_t rows = round_up(block.header.n, shape.n_tile);
    const auto add_values = [&](int64_t from, int64_t to, int64_t of_a_row) {
        if (of_a_row > 0) {
            block.pieces.push_back({-1, from + block.first * of_a_row, to, rows * of_a_row});
        }
    };
    const PackedParts& all = weight.parts;
    const PackedParts& own = block.parts;
    if (header.has_perm != 0) {
        block.pieces.push_back({-1, all.perm, own.perm, header.k * static_cast<int64_t>(sizeof(int32_t))});
    }
    const int64_t super_bytes = all.num_super_groups * element_bytes(GroupType::f16);
    add_values(all.scales, own.scales, all.num_groups * element_bytes(header.scale_type));
    add_values(all.zeros, own.zeros, all.num_groups * element_bytes(header.zero_type));
    add_values(all.super_scales, own.super_scales, super_bytes);
    add_values(all.super_offsets, own.super_offsets, header.zero_type != GroupType::none ? super_bytes : 0);
    for (int32_t region = 0; region < all.num_regions; ++region) {
        const int64_t chunk = region + 1 < all.num_regions ? shape.chunk_bytes : shape.last_bytes;
        const int64_t tile = shape.chunk_bytes != 0 ? all.padded_k / shape.k_chunk * chunk : (header.k + 7) / 8;
        block.pieces.push_back({region, block.first / shape.n_tile * tile, own.codes + region * own.region_stride,
                                rows / shape.n_tile * tile});
    }
    return block;
}

}  // namespace tmac
