#include "layout/tiles.h"

#include <algorithm>
#include <vector>

#include "catch.h"
#include "layout/tiled.h"
#include "random.h"

using namespace tmac;

namespace {

std::vector<uint8_t> random_planes(Random& random, int32_t bits, int64_t n, int64_t k) {
    const int64_t row_bytes = (k + 7) / 8;
    std::vector<uint8_t> planes = random.codes(bits * n * row_bytes, 256);
    for (size_t row = 0; k % 8 != 0 && row < static_cast<size_t>(bits * n); ++row) {
        uint8_t& last = planes[(row + 1) * static_cast<size_t>(row_bytes) - 1];
        last = static_cast<uint8_t>(last & ((1 << (k % 8)) - 1));
    }
    return planes;
}

/// The byte offset and the bit of the only bit set in a packed weight of one code.
std::pair<int64_t, int> where(Layout layout, int32_t bits, int32_t plane, int64_t n, int64_t k) {
    Tiled packed(layout, bits, 64, 128, 128);
    std::vector<uint8_t> planes(static_cast<size_t>(bits * 64 * 16));
    planes[static_cast<size_t>((plane * 64 + n) * 16 + k / 8)] = static_cast<uint8_t>(1 << (k % 8));
    planes_to_layout({planes.data(), bits, 64, 128}, packed.act_groups, packed.codes(), {0, 64});
    for (size_t i = 0; i < packed.bytes.size(); ++i) {
        for (int bit = 0; bit < 8; ++bit) {
            if (packed.bytes[i] == 1 << bit) {
                return {static_cast<int64_t>(i), bit};
            }
        }
    }
    return {-1, -1};
}

}  // namespace

TEST_CASE("unpacking inverts packing for every layout, width and size", "[tiles]") {
    Random random(3);
    for (const Layout layout : {Layout::planes, Layout::rows, Layout::quads, Layout::nibbles, Layout::wide_quads,
                                Layout::wide_nibbles, Layout::bands, Layout::crumbs}) {
        const auto [narrowest, widest] = widths_of(layout);
        for (int32_t bits = narrowest; bits <= widest; ++bits) {
            for (const int64_t n : {1, 16, 31, 32, 65}) {
                for (const int64_t k : {1, 8, 31, 33, 100, 128, 300}) {
                    for (const int32_t group_size : {-1, 5, 16, 32, 100, 128}) {
                        Tiled packed(layout, bits, n, k, group_size);
                        const std::vector<uint8_t> planes = random_planes(random, bits, n, k);
                        const PlanesView view{planes.data(), bits, n, k};
                        planes_to_layout(view, packed.act_groups, packed.codes(), {0, n});
                        std::vector<uint8_t> back(planes.size());
                        layout_to_planes(packed.codes(), packed.act_groups, view, back.data(), 0, n);
                        if (back != planes) {
                            CAPTURE(static_cast<int>(layout), bits, n, k, group_size);
                            FAIL("the planes changed");
                        }
                    }
                }
            }
        }
    }
    SUCCEED();
}

TEST_CASE("unpacking inverts packing where rows fill several bands", "[tiles]") {
    Random random(5);
    for (const Layout layout : {Layout::rows, Layout::bands}) {
        for (const int64_t n : {256, 257, 321, 600}) {
            for (const int32_t group_size : {-1, 50, 128}) {
                Tiled packed(layout, 2, n, 300, group_size);
                const std::vector<uint8_t> planes = random_planes(random, 2, n, 300);
                const PlanesView view{planes.data(), 2, n, 300};
                planes_to_layout(view, packed.act_groups, packed.codes(), {0, n});
                std::vector<uint8_t> back(planes.size());
                layout_to_planes(packed.codes(), packed.act_groups, view, back.data(), 0, n);
                CAPTURE(static_cast<int>(layout), n, group_size);
                CHECK(back == planes);
            }
        }
    }
}

TEST_CASE("rows may be packed in ranges of any length", "[tiles]") {
    Random random(4);
    for (const Layout layout : {Layout::planes, Layout::rows, Layout::quads, Layout::nibbles, Layout::wide_quads,
                                Layout::wide_nibbles, Layout::bands, Layout::crumbs}) {
        const auto [narrowest, widest] = widths_of(layout);
        for (int32_t bits = narrowest; bits <= widest; ++bits) {
            const std::vector<uint8_t> planes = random_planes(random, bits, 70, 100);
            const PlanesView view{planes.data(), bits, 70, 100};
            Tiled whole(layout, bits, 70, 100, 64);
            Tiled pieces = whole;
            planes_to_layout(view, whole.act_groups, whole.codes(), {0, 70});
            std::vector<uint8_t> back(planes.size());
            for (const auto& [begin, end] : {std::pair{40, 70}, std::pair{0, 1}, std::pair{1, 40}}) {
                planes_to_layout(view, pieces.act_groups, pieces.codes(), {begin, end});
                layout_to_planes(whole.codes(), whole.act_groups, view, back.data() + begin * view.row_bytes(), begin,
                                 end);
            }
            CAPTURE(static_cast<int>(layout), bits);
            CHECK(pieces.bytes == whole.bytes);
            CHECK(back == planes);
        }
    }
}

TEST_CASE("codes whose groups fill chunks take as many bytes as they have bits", "[tiles]") {
    struct Example {
        Layout layout;
        int32_t bits;
        int32_t group_size;
    };
    for (const Example& example :
         {Example{Layout::nibbles, 4, 16}, Example{Layout::nibbles, 5, 32}, Example{Layout::nibbles, 6, 16},
          Example{Layout::wide_nibbles, 5, 32}, Example{Layout::wide_nibbles, 6, 16}, Example{Layout::crumbs, 2, 16},
          Example{Layout::crumbs, 3, 16}, Example{Layout::nibbles, 8, 16}}) {
        CAPTURE(static_cast<int>(example.layout), example.bits);
        CHECK(Tiled(example.layout, example.bits, 64, 256, example.group_size).bytes.size() ==
              static_cast<size_t>(64 * 256 * example.bits / 8));
    }
}

TEST_CASE("trits: unpacking inverts packing, in ranges of rows too", "[tiles]") {
    Random random(5);
    for (const int64_t n : {1, 16, 65, 130}) {
        for (const int64_t k : {1, 4, 19, 20, 21, 100, 128, 300}) {
            for (const int32_t group_size : {-1, 5, 32, 100, 128}) {
                Tiled whole(Layout::trits, 2, n, k, group_size);
                Tiled pieces = whole;
                const std::vector<uint8_t> codes = random.codes(n * k, 3);
                const int64_t row_bytes = (k + 7) / 8;
                std::vector<uint8_t> planes(static_cast<size_t>(2 * n * row_bytes));
                for (int64_t row = 0; row < n; ++row) {
                    codes_to_planes(codes.data() + row * k, k, 2, planes.data() + row * row_bytes, n * row_bytes);
                }
                const PlanesView view{planes.data(), 2, n, k};
                planes_to_layout(view, whole.act_groups, whole.codes(), {0, n});
                planes_to_layout(view, pieces.act_groups, pieces.codes(), {n / 2, n});
                planes_to_layout(view, pieces.act_groups, pieces.codes(), {0, n / 2});
                std::vector<uint8_t> back(planes.size());
                layout_to_planes(whole.codes(), whole.act_groups, view, back.data(), 0, n);
                CAPTURE(n, k, group_size);
                CHECK(pieces.bytes == whole.bytes);
                CHECK(back == planes);
            }
        }
    }
}

TEST_CASE("trits: byte i of a row's four has the columns i, i + 4, ..., i + 16", "[tiles]") {
    Tiled packed(Layout::trits, 2, 70, 40, -1);
    const auto byte_of = [&](int64_t row, int64_t column, uint8_t code) {
        std::vector<uint8_t> planes(2 * 70 * 5);
        planes[static_cast<size_t>(((code == 2 ? 0 : 70) + row) * 5 + column / 8)] =
            static_cast<uint8_t>(1 << (column % 8));
        std::fill(packed.bytes.begin(), packed.bytes.end(), uint8_t{0});
        planes_to_layout({planes.data(), 2, 70, 40}, packed.act_groups, packed.codes(), {0, 70});
        const auto at = std::find_if(packed.bytes.begin(), packed.bytes.end(), [](uint8_t byte) { return byte != 0; });
        return std::pair<int64_t, int>{at - packed.bytes.begin(), *at};
    };
    // A chunk of 20 columns is 256 bytes of 64 rows; the second tile of 64 rows starts after two chunks.
    CHECK(byte_of(0, 0, 1) == std::pair<int64_t, int>{0, 1});
    CHECK(byte_of(0, 6, 2) == std::pair<int64_t, int>{2, 6});
    CHECK(byte_of(3, 12, 1) == std::pair<int64_t, int>{12, 27});
    CHECK(byte_of(3, 19, 2) == std::pair<int64_t, int>{15, 0x80});
    CHECK(byte_of(65, 20, 1) == std::pair<int64_t, int>{2 * 256 + 256 + 4, 1});
}

TEST_CASE("quads: four bytes per row, nibble j and nibble j + 4 in byte j", "[tiles]") {
    // 128 columns are 4 chunks of 128 bytes per tile of 32 rows; a plane has 2 tiles.
    CHECK(where(Layout::quads, 2, 0, 0, 0) == std::pair<int64_t, int>{0, 0});
    CHECK(where(Layout::quads, 2, 0, 0, 6) == std::pair<int64_t, int>{1, 2});
    CHECK(where(Layout::quads, 2, 0, 3, 17) == std::pair<int64_t, int>{3 * 4 + 0, 5});
    CHECK(where(Layout::quads, 2, 0, 16, 64) == std::pair<int64_t, int>{2 * 128 + 64, 0});
    CHECK(where(Layout::quads, 2, 1, 33, 0) == std::pair<int64_t, int>{2 * 4 * 128 + 4 * 128 + 4, 0});
}

TEST_CASE("bands: an act group of all rows before the next, 64 rows together", "[tiles]") {
    // 320 rows are a band of 256 and one of 64; 160 columns are act groups of 4 chunks of 32 and of 1.
    const auto byte_of = [](Layout layout, int64_t n, int64_t k) {
        Tiled packed(layout, 1, 320, 160, 128);
        std::vector<uint8_t> planes(320 * 20);
        planes[static_cast<size_t>(n * 20 + k / 8)] = static_cast<uint8_t>(1 << (k % 8));
        planes_to_layout({planes.data(), 1, 320, 160}, packed.act_groups, packed.codes(), {0, 320});
        return std::find_if(packed.bytes.begin(), packed.bytes.end(), [](uint8_t byte) { return byte != 0; }) -
               packed.bytes.begin();
    };
    CHECK(byte_of(Layout::bands, 0, 0) == 0);
    CHECK(byte_of(Layout::bands, 3, 33) == 256 + 3 * 4);
    CHECK(byte_of(Layout::bands, 17, 0) == 17 * 4);
    CHECK(byte_of(Layout::bands, 65, 0) == 4 * 256 + 4);
    CHECK(byte_of(Layout::bands, 65, 128) == 256 * 16 + 256 + 4);
    CHECK(byte_of(Layout::bands, 256, 32) == 256 * 20 + 256);
    CHECK(byte_of(Layout::bands, 274, 128) == 256 * 20 + 64 * 16 + 18 * 4);
    CHECK(byte_of(Layout::rows, 65, 0) == 4 * 256 + 2);
    CHECK(byte_of(Layout::rows, 65, 136) == 256 * 16 + 256 + 64 + 2);
    CHECK(byte_of(Layout::rows, 256, 32) == 256 * 20 + 256);
    CHECK(byte_of(Layout::rows, 288, 128) == 256 * 20 + 64 * 16 + 32);
}

TEST_CASE("rows: one byte per row for eight columns, the halves of 64 rows side by side", "[tiles]") {
    // 8 columns are 64 bytes; rows 8..15 stand between the rows 0..7, rows 4..7 in the upper lane.
    CHECK(where(Layout::rows, 1, 0, 0, 0) == std::pair<int64_t, int>{0, 0});
    CHECK(where(Layout::rows, 1, 0, 3, 9) == std::pair<int64_t, int>{64 + 6, 1});
    CHECK(where(Layout::rows, 1, 0, 5, 0) == std::pair<int64_t, int>{16 + 2, 0});
    CHECK(where(Layout::rows, 1, 0, 8, 0) == std::pair<int64_t, int>{1, 0});
    CHECK(where(Layout::rows, 1, 0, 16, 0) == std::pair<int64_t, int>{8, 0});
    CHECK(where(Layout::rows, 1, 0, 31, 7) == std::pair<int64_t, int>{31, 7});
    CHECK(where(Layout::rows, 1, 0, 32, 127) == std::pair<int64_t, int>{15 * 64 + 32, 7});
    CHECK(where(Layout::rows, 2, 1, 41, 8) == std::pair<int64_t, int>{64 * 16 + 64 + 32 + 3, 0});
}

TEST_CASE("nibbles: the top and the low four bits lie in regions of their own", "[tiles]") {
    const int64_t region = 64 / 16 * (128 / 8) * 64;
    CHECK(where(Layout::nibbles, 8, 0, 0, 0) == std::pair<int64_t, int>{0, 3});
    CHECK(where(Layout::nibbles, 8, 3, 1, 5) == std::pair<int64_t, int>{4 + 1, 4});
    CHECK(where(Layout::nibbles, 8, 7, 0, 0) == std::pair<int64_t, int>{region, 0});
    CHECK(where(Layout::nibbles, 8, 4, 17, 8) == std::pair<int64_t, int>{region + 16 * 64 + 64 + 4, 3});
}

TEST_CASE("nibbles: the rest of 5 and 6 bits fills a region of its own", "[tiles]") {
    // 32 columns of 16 rows are four times 64 bytes of top halves and 64 bytes of the fifth bit.
    const int64_t tops = 64 * 128 / 2;
    CHECK(where(Layout::nibbles, 5, 0, 0, 0) == std::pair<int64_t, int>{0, 3});
    CHECK(where(Layout::nibbles, 5, 3, 1, 13) == std::pair<int64_t, int>{64 + 4 + 1, 4});
    CHECK(where(Layout::nibbles, 5, 4, 1, 13) == std::pair<int64_t, int>{tops + 4 + 1, 3});
    CHECK(where(Layout::nibbles, 5, 4, 17, 63) == std::pair<int64_t, int>{tops + (4 + 1) * 64 + 4 + 3, 7});
    CHECK(where(Layout::wide_nibbles, 6, 0, 16, 8) == std::pair<int64_t, int>{128 + 64, 3});
    CHECK(where(Layout::wide_nibbles, 6, 4, 16, 8) == std::pair<int64_t, int>{tops + 64, 5});
    CHECK(where(Layout::wide_nibbles, 6, 5, 33, 31) == std::pair<int64_t, int>{tops + (8 + 1) * 128 + 4 + 3, 6});
}

TEST_CASE("crumbs: two bits of four columns in a byte, and rows 16 apart share the third bit's", "[tiles]") {
    const int64_t tops = 64 * 128 / 4;
    CHECK(where(Layout::crumbs, 2, 0, 0, 0) == std::pair<int64_t, int>{0, 1});
    CHECK(where(Layout::crumbs, 2, 1, 33, 23) == std::pair<int64_t, int>{(8 + 1) * 128 + 4 + 3, 2});
    CHECK(where(Layout::crumbs, 3, 0, 17, 15) == std::pair<int64_t, int>{17 * 4 + 3, 7});
    CHECK(where(Layout::crumbs, 3, 2, 1, 15) == std::pair<int64_t, int>{tops + 4 + 3, 3});
    CHECK(where(Layout::crumbs, 3, 2, 49, 31) == std::pair<int64_t, int>{tops + (8 + 1) * 64 + 4 + 3, 7});
}
