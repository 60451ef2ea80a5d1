#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "layout/bitplane.h"

namespace tmac {

/// Where the codes of a packed weight lie.
struct TiledCodes {
    Layout layout;
    uint8_t* data;          ///< first region
    int64_t region_stride;  ///< bytes from one region to the next
    int64_t padded_k;
    int64_t n;
};

/// Writes rows [row_begin, row_end) of canonical planes into `out`, which is zero where nothing is written. Ranges of
/// whole tiles are independent and may run in parallel.
void planes_to_layout(const PlanesView& planes, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                      int64_t row_begin, int64_t row_end);

/// The inverse: `planes` is where row `row_begin` starts in planes of the shape of `view`, and zero where nothing is
/// written.
void layout_to_planes(const TiledCodes& in, const std::vector<ActGroup>& act_groups, const PlanesView& view,
                      uint8_t* planes, int64_t row_begin, int64_t row_end);

}  // namespace tmac
