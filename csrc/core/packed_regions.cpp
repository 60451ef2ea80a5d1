#include "core/packed_regions.h"

namespace tmac {
namespace {

int32_t first_plane(Layout layout, int32_t region) {
    switch (layout) {
        case Layout::nibbles:
        case Layout::wide_nibbles:
            return 4 * region;  // the top four bits, and the rest
        case Layout::crumbs:
            return 2 * region;  // the top two, and the third
        default:
            return region;  // planes, or one region for all
    }
}

}  // namespace

std::vector<PackedRegion> packed_regions(const PackedHeader& header, const PackedParts& parts) {
    std::vector<PackedRegion> regions;
    for (int32_t region = 0; region < parts.num_regions; ++region) {
        const int64_t begin = parts.codes + region * parts.region_stride;
        const int64_t end = region + 1 < parts.num_regions ? begin + parts.region_stride : parts.bytes;
        regions.push_back({begin, end, first_plane(header.layout, region)});
    }
    return regions;
}

}  // namespace tmac
