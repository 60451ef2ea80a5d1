#include "layout/tiles.h"

#include <algorithm>
#include <cstring>

#include "core/bits.h"
#include "core/trit_byte.h"
#include "layout/tile_places.h"

// Back from the layouts, any rows by themselves: an embedding is read in this way. Writing whole weights is another
// matter (tile_writer.cpp).

namespace tmac {
namespace {

void or_bits(uint8_t* row, int64_t column, int64_t count, uint32_t bits) {
    const int64_t first = column / 8;
    const auto bytes = static_cast<size_t>((column + count + 7) / 8 - first);
    uint64_t word = 0;
    std::memcpy(&word, row + first, bytes);
    word |= (bits & ((uint64_t{1} << count) - 1)) << (column % 8);
    std::memcpy(row + first, &word, bytes);
}

// ---- quads: byte j of a row's four = nibble j | nibble j+4 << 4 ----

constexpr uint32_t gather_nibbles(uint32_t bytes) {
    const uint32_t pairs = (bytes | (bytes >> 4)) & 0x00ff00ffU;
    return (pairs | (pairs >> 8)) & 0xffffU;
}

uint32_t get_quad(const uint8_t* chunk, int64_t row) {
    uint32_t word = 0;
    std::memcpy(&word, chunk + row * 4, 4);
    return gather_nibbles(word & 0x0f0f0f0fU) | (gather_nibbles((word >> 4) & 0x0f0f0f0fU) << 16);
}

// ---- rows: one byte per row and 8 columns, which is the plane's own byte ----

uint32_t get_row(const uint8_t* chunk, int64_t row) {
    const uint8_t* byte = chunk + place_in_rows(row);
    uint32_t bits = 0;
    for (int64_t i = 0; i < 4; ++i) {
        bits |= uint32_t{byte[i * 64]} << (8 * i);
    }
    return bits;
}

// ---- nibbles and crumbs: byte j of a row's four = fields of the codes j, j + 4, ... from its lowest bits on ----

/// The words of a row in one chunk.
struct CodeWords {
    uint8_t* top;        ///< of the first 8 columns, or of 16 crumbs
    int64_t top_stride;  ///< to the next word
    uint8_t* rest;       ///< null where there is none
    int32_t rest_place;  ///< rows that share a byte of the last region: the row's first bit
    Division division;

    uint64_t get(int32_t part) const {
        const int32_t at = 2 * part * division.top_bits;
        uint64_t eight = unfold_fields(load(top + at / 8 * top_stride), division.top_bits, at % 8)
                         << (8 - division.top_bits);
        if (rest != nullptr) {
            eight |= unfold_fields(load(rest), division.rest_bits, rest_place + 2 * part * division.rest_bits)
                     << (8 - division.top_bits - division.rest_bits);
        }
        return eight;
    }

private:
    static uint32_t load(const uint8_t* bytes) {
        uint32_t word = 0;
        std::memcpy(&word, bytes, 4);
        return word;
    }
};

// ---- trits: byte j of a row's four = codes j, j+4, ..., j+16 ----

/// 20 columns' bits of both planes.
struct TwoPlanes {
    uint32_t high;
    uint32_t low;
};

struct TritLookups {
    TwoPlanes planes[256];  ///< of a byte, code j in bit 4j
};

consteval TritLookups make_trit_lookups() {
    TritLookups tables{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        const uint32_t codes = codes_of_trit_byte(byte);
        for (int j = 0; j < kTritsInByte; ++j) {
            tables.planes[byte].low |= (codes >> (2 * j) & 1U) << (4 * j);
            tables.planes[byte].high |= (codes >> (2 * j + 1) & 1U) << (4 * j);
        }
    }
    return tables;
}

constexpr TritLookups kTritLookups = make_trit_lookups();

TwoPlanes get_trits(const uint8_t* chunk, int64_t row) {
    TwoPlanes bits{0, 0};
    for (int i = 0; i < 4; ++i) {
        const TwoPlanes& of_byte = kTritLookups.planes[chunk[row * 4 + i]];
        bits.high |= of_byte.high << i;
        bits.low |= of_byte.low << i;
    }
    return bits;
}

/// The chunks of one row: where they lie in the first region.
struct RowChunks {
    const TiledCodes& codes;
    LayoutShape shape;
    int64_t row;
    int64_t row_in_chunk;

    RowChunks(const TiledCodes& in, const LayoutShape& of, int64_t at)
        : codes(in), shape(of), row(at), row_in_chunk(at % of.n_tile) {}

    /// Where the codes of a chunk lie, of a layout that has codes.
    CodeWords words(uint8_t* chunk, int32_t bits) const {
        const Division division = division_of(codes.layout, bits);
        const int64_t in_top = row_in_chunk * 4;
        if (division.rest_bits == 0) {
            return {chunk + in_top, shape.n_tile * 4, nullptr, 0, division};
        }
        const int64_t index = (chunk - codes.data) / shape.chunk_bytes;
        const int64_t in_rest = in_top % shape.last_bytes;
        return {chunk + in_top, shape.n_tile * 4, codes.data + codes.regions.of[1] + index * shape.last_bytes + in_rest,
                in_top == in_rest ? 0 : 4, division};
    }

    /// Calls visit(column, count, chunk) for every k_chunk columns.
    template <class Visit>
    void for_each(const std::vector<ActGroup>& act_groups, const Visit& visit) const {
        for (const ActGroup& group : act_groups) {
            uint8_t* chunk = codes.data + first_chunk(codes, shape, row, group);
            for (int64_t at = 0; at < group.k_count; at += shape.k_chunk, chunk += shape.chunk_bytes) {
                visit(group.k_begin + at, std::min<int64_t>(shape.k_chunk, group.k_count - at), chunk);
            }
        }
    }
};

}  // namespace

void layout_to_planes(const TiledCodes& in, const std::vector<ActGroup>& act_groups, const PlanesView& view,
                      uint8_t* planes, int64_t row_begin, int64_t row_end) {
    const LayoutShape shape = layout_shape(in.layout, view.bits);
    const int64_t row_bytes = view.row_bytes();
    for (int64_t row = row_begin; row < row_end; ++row) {
        const auto plane_row = [&](int32_t plane) { return planes + (plane * view.n + row - row_begin) * row_bytes; };
        const RowChunks chunks{in, shape, row};
        const int64_t in_chunk = chunks.row_in_chunk;
        if (in_codes(in.layout)) {
            chunks.for_each(act_groups, [&](int64_t column, int64_t count, uint8_t* chunk) {
                const CodeWords words = chunks.words(chunk, view.bits);
                for (int32_t part = 0; 8 * part < count; ++part) {
                    const uint64_t eight = words.get(part);
                    const int64_t left = std::min<int64_t>(8, count - 8 * part);
                    for (int32_t plane = 0; plane < view.bits; ++plane) {
                        or_bits(plane_row(plane), column + 8 * part, left,
                                gather_bits((eight >> (7 - plane)) & kLowBits));
                    }
                }
            });
            continue;
        }
        if (in.layout == Layout::trits) {
            chunks.for_each(act_groups, [&](int64_t column, int64_t count, const uint8_t* chunk) {
                const TwoPlanes bits = get_trits(chunk, in_chunk);
                or_bits(plane_row(0), column, count, bits.high);
                or_bits(plane_row(1), column, count, bits.low);
            });
            continue;
        }
        for (int32_t plane = 0; plane < view.bits; ++plane) {
            const int64_t region = in.regions.of[plane];
            if (in.layout == Layout::planes) {
                std::memcpy(plane_row(plane), in.data + region + row * row_bytes, static_cast<size_t>(row_bytes));
                continue;
            }
            const auto get = in.layout == Layout::rows ? get_row : get_quad;
            chunks.for_each(act_groups, [&](int64_t column, int64_t count, const uint8_t* chunk) {
                or_bits(plane_row(plane), column, count, get(chunk + region, in_chunk));
            });
        }
    }
}

}  // namespace tmac
