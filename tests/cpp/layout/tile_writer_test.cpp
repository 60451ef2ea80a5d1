#include <algorithm>
#include <utility>
#include <vector>

#include "catch.h"
#include "core/trit_byte.h"
#include "layout/tiled.h"
#include "layout/tiles.h"
#include "random.h"

using namespace tmac;

namespace {

constexpr Layout kLayouts[] = {Layout::planes,       Layout::rows,  Layout::quads, Layout::nibbles, Layout::wide_quads,
                               Layout::wide_nibbles, Layout::bands, Layout::trits, Layout::crumbs};

/// Where one bit of a code lies, straight from what core/layout.h says of the layouts.
struct BitPlace {
    int64_t byte;
    int32_t bit;
};

/// First byte of a chunk in a region of `chunk_bytes` for each.
int64_t chunk_at(const Tiled& tiled, const LayoutShape& shape, int64_t chunk_bytes, int64_t row, const ActGroup& group,
                 int64_t in_group) {
    if (in_bands(tiled.layout)) {
        return BandPlace(tiled.n, row).codes(tiled.padded_k, group) + in_group / shape.k_chunk * chunk_bytes;
    }
    const int64_t chunks = tiled.padded_k / shape.k_chunk;
    return (row / shape.n_tile * chunks + (group.padded_begin + in_group) / shape.k_chunk) * chunk_bytes;
}

/// Of a layout other than trits; `plane` 0 is the top bit.
BitPlace place_of(const Tiled& tiled, int32_t plane, int64_t row, const ActGroup& group, int64_t in_group) {
    const LayoutShape shape = layout_shape(tiled.layout, tiled.bits);
    const int64_t in_tile = row % shape.n_tile;
    const int64_t column = in_group % shape.k_chunk;
    const int64_t region = plane * tiled.region_stride;
    const int64_t chunk = shape.chunk_bytes == 0 ? 0 : chunk_at(tiled, shape, shape.chunk_bytes, row, group, in_group);
    switch (tiled.layout) {
        case Layout::planes: {
            const int64_t at = group.k_begin + in_group;
            return {region + row * ((tiled.k + 7) / 8) + at / 8, static_cast<int32_t>(at % 8)};
        }
        case Layout::rows: {
            const int64_t half = in_tile % 32;
            const int64_t in_line = in_tile / 32 * 32 + half / 4 % 2 * 16 + half / 16 * 8 + half % 4 * 2 + half / 8 % 2;
            return {region + chunk + column / 8 * 64 + in_line, static_cast<int32_t>(column % 8)};
        }
        case Layout::quads:
        case Layout::wide_quads:
        case Layout::bands: {
            const int64_t nibble = column / 4;
            return {region + chunk + in_tile * 4 + nibble % 4, static_cast<int32_t>(nibble / 4 * 4 + column % 4)};
        }
        default: {
            const bool crumbs = tiled.layout == Layout::crumbs;
            const int32_t top = crumbs ? 2 : 4;
            const int32_t rest = crumbs ? 1 : rest_of_nibbles(tiled.bits);
            const int64_t byte = column % 4;
            if (plane < top) {  // words of 8 nibbles or 16 crumbs
                const int64_t word = column / (32 / top) * shape.n_tile * 4;
                const int64_t field = column % (32 / top) / 4;
                return {chunk + word + in_tile * 4 + byte, static_cast<int32_t>(field * top) + top - 1 - plane};
            }
            const int64_t at = tiled.region_stride + chunk_at(tiled, shape, shape.last_bytes, row, group, in_group);
            const auto half = static_cast<int32_t>(crumbs ? in_tile / 16 * 4 : 0);
            const int64_t in_rest = crumbs ? in_tile % 16 : in_tile;
            return {at + in_rest * 4 + byte, half + static_cast<int32_t>(column / 4 * rest) + rest - 1 - (plane - top)};
        }
    }
}

/// The layout, bit by bit.
void write_simply(Tiled& tiled, const std::vector<uint8_t>& codes) {
    const LayoutShape shape = layout_shape(tiled.layout, tiled.bits);
    for (int64_t row = 0; row < tiled.n; ++row) {
        for (const ActGroup& group : tiled.act_groups) {
            for (int64_t i = 0; i < group.k_count; ++i) {
                const auto code_at = [&](int64_t in_group) -> uint32_t {
                    return in_group < group.k_count
                               ? codes[static_cast<size_t>(row * tiled.k + group.k_begin + in_group)]
                               : 0U;
                };
                if (tiled.layout == Layout::trits) {
                    const int64_t in_chunk = i % 20;
                    const int64_t first = i - in_chunk + in_chunk % 4;
                    const uint32_t s =
                        code_at(first) + 3 * code_at(first + 4) + 9 * code_at(first + 8) + 27 * code_at(first + 12);
                    const int64_t at = chunk_at(tiled, shape, shape.chunk_bytes, row, group, i);
                    tiled.bytes[static_cast<size_t>(at + row % 64 * 4 + in_chunk % 4)] =
                        static_cast<uint8_t>(trit_byte_of(s, code_at(first + 16)));
                    continue;
                }
                for (int32_t plane = 0; plane < tiled.bits; ++plane) {
                    const BitPlace place = place_of(tiled, plane, row, group, i);
                    const uint32_t bit = code_at(i) >> (tiled.bits - 1 - plane) & 1U;
                    auto& byte = tiled.bytes[static_cast<size_t>(place.byte)];
                    byte = static_cast<uint8_t>(byte | bit << place.bit);
                }
            }
        }
    }
}

std::vector<uint8_t> planes_of(const std::vector<uint8_t>& codes, int32_t bits, int64_t n, int64_t k) {
    const int64_t row_bytes = (k + 7) / 8;
    std::vector<uint8_t> planes(static_cast<size_t>(bits * n * row_bytes));
    for (int64_t row = 0; row < n; ++row) {
        codes_to_planes(codes.data() + row * k, k, bits, planes.data() + row * row_bytes, n * row_bytes);
    }
    return planes;
}

/// What the fast writers make of the codes, in ranges that end anywhere, is what the simple one does.
void check_writers(Random& random, Layout layout, int32_t bits, int64_t n, int64_t k, int32_t group_size) {
    Tiled want(layout, bits, n, k, group_size);
    const std::vector<uint8_t> codes = random.codes(n * k, layout == Layout::trits ? 3U : 1U << bits);
    const std::vector<uint8_t> planes = planes_of(codes, bits, n, k);
    write_simply(want, codes);
    CAPTURE(static_cast<int>(layout), bits, n, k, group_size);
    Tiled whole(layout, bits, n, k, group_size);
    planes_to_layout({planes.data(), bits, n, k}, whole.act_groups, whole.codes(), {0, n});
    REQUIRE(whole.bytes == want.bytes);
    Tiled from_codes(layout, bits, n, k, group_size);
    codes_to_layout({codes.data(), bits, n, k}, from_codes.act_groups, from_codes.codes(), {0, n});
    REQUIRE(from_codes.bytes == want.bytes);

    Tiled pieces(layout, bits, n, k, group_size);
    const int64_t cut = n / 3;
    const std::vector<uint8_t> tail(codes.begin() + cut * k, codes.end());  // rows that come later, by themselves
    const std::vector<uint8_t> tail_planes = planes_of(tail, bits, n - cut, k);
    planes_to_layout({tail_planes.data(), bits, n - cut, k}, pieces.act_groups, pieces.codes(), {1, n - cut}, cut);
    codes_to_layout({tail.data(), bits, n - cut, k}, pieces.act_groups, pieces.codes(), {0, 1}, cut);
    codes_to_layout({codes.data(), bits, n, k}, pieces.act_groups, pieces.codes(), {0, cut});
    REQUIRE(pieces.bytes == want.bytes);
}

}  // namespace

TEST_CASE("planes and codes become every layout as it is defined, at every width and size", "[tiles]") {
    Random random(7);
    for (const Layout layout : kLayouts) {
        const auto [narrowest, widest] = widths_of(layout);
        for (int32_t bits = narrowest; bits <= widest; ++bits) {
            for (const int64_t n : {1, 17, 32, 65}) {
                for (const int64_t k : {1, 8, 33, 100, 128, 300, 576, 1100}) {
                    for (const int32_t group_size : {-1, 5, 16, 32, 100, 128}) {
                        check_writers(random, layout, bits, n, k, group_size);
                    }
                }
            }
        }
    }
}

TEST_CASE("rows in several bands and tiles become every layout as it is defined", "[tiles]") {
    Random random(8);
    for (const Layout layout : kLayouts) {
        const int32_t bits = widths_of(layout).first;
        for (const int64_t n : {256, 257, 321, 600}) {
            for (const int32_t group_size : {-1, 16, 50, 64}) {
                check_writers(random, layout, bits, n, 300, group_size);
            }
        }
    }
}

TEST_CASE("long rows become every layout as it is defined", "[tiles]") {
    Random random(10);
    for (const Layout layout : kLayouts) {
        const auto [narrowest, widest] = widths_of(layout);
        for (int32_t bits = narrowest; bits <= widest; ++bits) {
            for (const int32_t group_size : {-1, 32, 100}) {
                check_writers(random, layout, bits, 33, 4200, group_size);
            }
        }
    }
}

TEST_CASE("bits behind the last column of a row mean nothing", "[tiles]") {
    Random random(9);
    for (const Layout layout : kLayouts) {
        if (layout == Layout::planes) {
            continue;  // the file's own bytes
        }
        const int32_t bits = widths_of(layout).second;
        const std::vector<uint8_t> codes = random.codes(33 * 77, layout == Layout::trits ? 3U : 1U << bits);
        std::vector<uint8_t> planes = planes_of(codes, bits, 33, 77);
        Tiled clean(layout, bits, 33, 77, -1);
        planes_to_layout({planes.data(), bits, 33, 77}, clean.act_groups, clean.codes(), {0, 33});
        for (size_t last = 9; last < planes.size(); last += 10) {
            planes[last] = static_cast<uint8_t>(planes[last] | 0xe0U);
        }
        Tiled dirty(layout, bits, 33, 77, -1);
        planes_to_layout({planes.data(), bits, 33, 77}, dirty.act_groups, dirty.codes(), {0, 33});
        CAPTURE(static_cast<int>(layout));
        CHECK(dirty.bytes == clean.bytes);
    }
}
