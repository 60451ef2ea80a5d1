#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/range.h"
#include "layout/bitplane.h"

namespace tmac {

/// Where the codes of a packed weight lie.
struct TiledCodes {
    Layout layout;
    uint8_t* data;  ///< first region
    RegionOffsets regions;
    int64_t padded_k;
    int64_t n;
};

/// Writes the rows [rows.begin, rows.end) of canonical planes into `out`, which is zero where nothing has been written;
/// row 0 of the planes is row `first` of the weight. Ranges that share no 64 rows of the weight may be written in
/// parallel.
void planes_to_layout(const PlanesView& planes, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                      Range rows, int64_t first = 0);

/// A matrix of codes, u8 [n][k], each below 2^bits.
struct CodesView {
    const uint8_t* data;
    int32_t bits;
    int64_t n;
    int64_t k;
};

/// The same from codes.
void codes_to_layout(const CodesView& codes, const std::vector<ActGroup>& act_groups, const TiledCodes& out, Range rows,
                     int64_t first = 0);

/// The inverse: `planes` is where row `row_begin` starts in planes of the shape of `view`, and zero where nothing is
/// written.
void layout_to_planes(const TiledCodes& in, const std::vector<ActGroup>& act_groups, const PlanesView& view,
                      uint8_t* planes, int64_t row_begin, int64_t row_end);

}  // namespace tmac
