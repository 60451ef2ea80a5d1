#include "core/packed_regions.h"

#include "catch.h"

using namespace tmac;

namespace {

PackedHeader header_of(Layout layout, int bits, int64_t n, int64_t k) {
    PackedHeader header{};
    header.spec.bits = static_cast<uint8_t>(bits);
    header.spec.group_size = 32;
    header.n = n;
    header.k = k;
    header.layout = layout;
    header.scale_type = GroupType::f16;
    return header;
}

}  // namespace

TEST_CASE("packed_regions covers everything behind the group values") {
    struct Case {
        Layout layout;
        int bits;
        std::vector<int32_t> first_planes;
    };
    for (const Case& each :
         {Case{Layout::quads, 3, {0, 1, 2}}, Case{Layout::nibbles, 4, {0}}, Case{Layout::wide_nibbles, 8, {0, 4}},
          Case{Layout::nibbles, 5, {0, 4}}, Case{Layout::crumbs, 3, {0, 2}}, Case{Layout::planes, 2, {0, 1}}}) {
        const PackedHeader header = header_of(each.layout, each.bits, 70, 96);
        const PackedParts parts = packed_parts(header);
        const std::vector<PackedRegion> regions = packed_regions(header, parts);
        REQUIRE(regions.size() == each.first_planes.size());
        int64_t at = parts.codes;
        for (size_t i = 0; i < regions.size(); ++i) {
            CHECK(regions[i].begin == at);
            CHECK(regions[i].end > regions[i].begin);
            CHECK(regions[i].first_plane == each.first_planes[i]);
            at = regions[i].end;
        }
        CHECK(at == parts.bytes);
    }
}
