#pragma once

#include <cstdint>
#include <vector>

#include "core/packed_weight.h"

namespace tmac {

/// A region of a packed weight's codes.
struct PackedRegion {
    int64_t begin;        ///< in bytes from the weight's start
    int64_t end;          ///< of the last region with what fills the weight up
    int32_t first_plane;  ///< of those whose bits it holds, 0 being the most significant
};

/// In the order of the layout. Before the first lie the head, perm and group values. A prefix of the planes needs the
/// regions whose first plane is one of it.
std::vector<PackedRegion> packed_regions(const PackedHeader& header, const PackedParts& parts);

}  // namespace tmac
