#pragma once

#include <cstdint>
#include <vector>

#include "ops/weight_view.h"

namespace tmac {

/// Rows of a packed weight whose bytes lie together in each of its parts: copied into one piece of memory they are a
/// packed weight of their own, so that a row can be looked up in a weight that is on a disk.
struct RowBlock {
    struct Piece {
        int32_t region;  ///< that it is in; -1: before the codes
        int64_t from;    ///< in bytes from the start of the weight, or of the region
        int64_t to;      ///< from the start of the block's memory
        int64_t bytes;
    };

    int64_t first;  ///< row of the weight that is the block's first
    PackedHeader header;
    PackedParts parts;
    std::vector<Piece> pieces;
};

/// The block of a row. Of the weight only header and parts are used.
RowBlock row_block(const WeightView& weight, int64_t row);

}  // namespace tmac
