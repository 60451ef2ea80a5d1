#include "core/packed_weight.h"

#include <cstring>
#include <limits>
#include <stdexcept>
#include <vector>

#include "catch.h"

using namespace tmac;

namespace {

PackedHeader make_header(Layout layout, int64_t n, int64_t k) {
    PackedHeader header{};
    std::memcpy(header.magic, kPackedMagic, sizeof(kPackedMagic));
    std::strcpy(header.kernel, "qgemm_lut_w4_scalar");
    header.n = n;
    header.k = k;
    header.layout = layout;
    header.scale_type = GroupType::f16;
    header.zero_type = GroupType::none;
    return header;
}

}  // namespace

TEST_CASE("the parts follow one another, aligned, with room for every value", "[packed_weight]") {
    struct Example {
        Layout layout;
        uint8_t bits;
    };
    for (const auto& [layout, bits] :
         {Example{Layout::planes, 4}, Example{Layout::rows, 4}, Example{Layout::quads, 4}, Example{Layout::nibbles, 4},
          Example{Layout::nibbles, 5}, Example{Layout::nibbles, 6}, Example{Layout::nibbles, 7},
          Example{Layout::wide_quads, 4}, Example{Layout::wide_nibbles, 5}, Example{Layout::wide_nibbles, 6},
          Example{Layout::wide_nibbles, 8}, Example{Layout::bands, 4}, Example{Layout::crumbs, 2},
          Example{Layout::crumbs, 3}}) {
        for (const int64_t n : {1, 16, 33}) {
            for (const int64_t k : {1, 100, 576}) {
                PackedHeader header = make_header(layout, n, k);
                header.spec.bits = bits;
                header.has_perm = 1;
                header.zero_type = GroupType::f32;
                header.spec.zero_point = ZeroPoint::offset;
                const PackedParts parts = packed_parts(header);
                CAPTURE(static_cast<int>(layout), int{bits}, n, k);
                CHECK(parts.num_groups == num_groups(header.spec, k));
                CHECK(parts.perm >= static_cast<int64_t>(sizeof(PackedHeader)));
                CHECK(parts.scales - parts.perm >= k * 4);
                CHECK(parts.zeros - parts.scales >= n * parts.num_groups * 2);
                CHECK(parts.codes - parts.zeros >= n * parts.num_groups * 4);
                const LayoutShape shape = layout_shape(layout, bits);
                CHECK(parts.bytes - parts.codes >= parts.region_stride * (shape.num_regions - 1));
                CHECK(parts.bytes - parts.codes >= n * k * bits / 8);
                if (shape.last_bytes == shape.chunk_bytes) {
                    CHECK(parts.bytes - parts.codes >= parts.region_stride * shape.num_regions);
                }
                for (const int64_t offset : {parts.perm, parts.scales, parts.zeros, parts.codes, parts.bytes}) {
                    CHECK(offset % 64 == 0);
                }
            }
        }
    }
}

TEST_CASE("5 and 6 bits, and small groups of 2 and 3, take no more than their bits", "[packed_weight]") {
    const auto bits_of = [](Layout layout, uint8_t bits, int32_t group_size) {
        PackedHeader header = make_header(layout, 128, 4096);
        header.spec.bits = bits;
        header.spec.group_size = group_size;
        const PackedParts parts = packed_parts(header);
        return static_cast<double>(parts.bytes - parts.codes) * 8 / (128 * 4096);
    };
    for (const Layout layout : {Layout::nibbles, Layout::wide_nibbles}) {
        CHECK(bits_of(layout, 4, 16) == 4);
        CHECK(bits_of(layout, 5, 32) == 5);
        CHECK(bits_of(layout, 6, 16) == 6);
        CHECK(bits_of(layout, 7, 16) == 8);
        CHECK(bits_of(layout, 8, 16) == 8);
    }
    CHECK(bits_of(Layout::crumbs, 2, 16) == 2);
    CHECK(bits_of(Layout::crumbs, 3, 16) == 3);
}

TEST_CASE("a ternary weight of five codes in a byte takes 1.6 bits, where act groups are long", "[packed_weight]") {
    PackedHeader header = make_header(Layout::trits, 128, 4096);
    header.spec.bits = 2;
    header.spec.group_size = -1;
    header.spec.activation = Activation::token;
    CHECK(packed_parts(header).region_stride == 128 * 4100 / 5);
    header.spec.activation = Activation::group;  // 128 columns are filled up to 140
    CHECK(packed_parts(header).region_stride == 128 * 32 * 140 / 5);
}

TEST_CASE("scales of two levels have their super values in parts of their own", "[packed_weight]") {
    for (const ZeroPoint zero_point : {ZeroPoint::fixed, ZeroPoint::offset}) {
        for (const int64_t k : {1, 256, 257, 4096}) {
            PackedHeader header = make_header(Layout::wide_nibbles, 64, k);
            header.spec.group_size = 32;
            header.spec.scale_format = ScaleFormat::two_level;
            header.spec.zero_point = zero_point;
            header.scale_type = GroupType::i8;
            const bool fixed = zero_point == ZeroPoint::fixed;
            header.zero_type = fixed ? GroupType::none : GroupType::i8;
            const PackedParts parts = packed_parts(header);
            CAPTURE(k, fixed);
            const int64_t groups = (k + 31) / 32;
            const int64_t super_bytes = 64 * 2 * ((k + 255) / 256);
            CHECK(parts.num_super_groups == (k + 255) / 256);
            CHECK(parts.zeros - parts.scales == 64 * groups);
            CHECK(parts.super_scales - parts.zeros == (fixed ? 0 : 64 * groups));
            CHECK(parts.super_offsets - parts.super_scales == super_bytes);
            CHECK(parts.codes - parts.super_offsets == (fixed ? 0 : super_bytes));
            if (k == 4096 && !fixed) {  // 4 + 2 * 8 / 32 + 2 * 16 / 256 bits a weight
                CHECK((parts.bytes - parts.scales) * 8 * 1000 == 64 * k * 4625);
            }
        }
    }
    PackedHeader plain = make_header(Layout::wide_nibbles, 64, 4096);
    CHECK(packed_parts(plain).num_super_groups == 0);
    CHECK(packed_parts(plain).codes == packed_parts(plain).super_scales);
}

TEST_CASE("sizes out of range are refused before anything is allocated", "[packed_weight]") {
    for (const int64_t bad : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
        CHECK_THROWS_AS(packed_parts(make_header(Layout::planes, bad, 8)), std::invalid_argument);
        CHECK_THROWS_AS(packed_parts(make_header(Layout::planes, 8, bad)), std::invalid_argument);
    }
    CHECK_THROWS_AS(packed_parts(make_header(static_cast<Layout>(200), 8, 8)), std::invalid_argument);
    PackedHeader header = make_header(Layout::planes, 8, 8);
    header.scale_type = static_cast<GroupType>(77);
    CHECK_THROWS_AS(packed_parts(header), std::invalid_argument);
}

TEST_CASE("the largest sizes do not overflow", "[packed_weight]") {
    PackedHeader header = make_header(Layout::quads, kMaxRows, kMaxColumns);
    header.spec.group_size = 1;
    header.spec.bits = 8;
    header.scale_type = GroupType::f32;
    CHECK(packed_parts(header).bytes > kMaxRows * kMaxColumns);
}

TEST_CASE("the checksum sees every field", "[packed_weight]") {
    const PackedHeader header = make_header(Layout::planes, 8, 16);
    const auto differs = [&](auto change) {
        PackedHeader other = header;
        change(other);
        return header_checksum(other) != header_checksum(header);
    };
    CHECK_FALSE(differs([](PackedHeader&) {}));
    CHECK(differs([](PackedHeader& h) { h.magic[0] = 'X'; }));
    CHECK(differs([](PackedHeader& h) { h.kernel[0] = 'X'; }));
    CHECK(differs([](PackedHeader& h) { h.spec.bits = 3; }));
    CHECK(differs([](PackedHeader& h) { h.spec.codebook = Codebook::ternary; }));
    CHECK(differs([](PackedHeader& h) { h.spec.zero_point = ZeroPoint::real; }));
    CHECK(differs([](PackedHeader& h) { h.spec.activation = Activation::token; }));
    CHECK(differs([](PackedHeader& h) { h.spec.scale_format = ScaleFormat::f32; }));
    CHECK(differs([](PackedHeader& h) { h.spec.fast_aggregation = 1; }));
    CHECK(differs([](PackedHeader& h) { h.spec.group_size = 64; }));
    CHECK(differs([](PackedHeader& h) { h.spec.fixed_zero = 7.5F; }));
    CHECK(differs([](PackedHeader& h) { h.n = 9; }));
    CHECK(differs([](PackedHeader& h) { h.k = 17; }));
    CHECK(differs([](PackedHeader& h) { h.layout = Layout::nibbles; }));
    CHECK(differs([](PackedHeader& h) { h.scale_type = GroupType::f32; }));
    CHECK(differs([](PackedHeader& h) { h.zero_type = GroupType::u8; }));
    CHECK(differs([](PackedHeader& h) { h.has_perm = 1; }));
}

TEST_CASE("a packed weight starts with its header", "[packed_weight]") {
    const PackedHeader header = make_header(Layout::planes, 8, 16);
    const PackedParts parts = packed_parts(header);
    const PackedWeight weight(header, parts);
    CHECK(weight.size() == parts.bytes);
    CHECK(weight.header().n == 8);
    CHECK(header_checksum(weight.header()) == header_checksum(header));
}
