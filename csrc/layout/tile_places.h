#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "layout/tiles.h"

// Where rows and columns lie in the regions of the layouts: what writing and reading them share.

namespace tmac {

/// How codes are divided between two regions.
struct Division {
    int32_t top_bits;
    int32_t rest_bits;  ///< 0 where there is no second region
};

constexpr Division division_of(Layout layout, int32_t bits) {
    if (layout == Layout::crumbs) {
        return {2, bits - 2};
    }
    return {4, bits > 4 ? rest_of_nibbles(bits) : 0};
}

/// Layouts whose words hold fields of the codes j, j + 4, ..., from the lowest bits of byte j on.
constexpr bool in_codes(Layout layout) {
    return layout == Layout::nibbles || layout == Layout::wide_nibbles || layout == Layout::crumbs;
}

/// Layout::rows: byte of a row in its half of 32 rows. Rows 8q + 4 lane + i stand in bytes 2i of a 16-byte lane's half:
/// unpacked to int16 with `unpacklo` or `unpackhi`, the rows of an even q are the even words, and those of the next q
/// the odd ones.
constexpr int64_t byte_of_row(int64_t row) {
    const int64_t q = row / 8 % 4;
    return (row / 4 % 2) * 16 + q / 2 * 8 + row % 4 * 2 + q % 2;
}

constexpr int64_t place_in_rows(int64_t row) { return row / 32 * 32 + byte_of_row(row); }

/// Eight fields of `bits` bits, a byte each, to a word's bits [place, place + 2 bits) of every byte.
constexpr uint32_t fold_fields(uint64_t eight, int32_t bits, int32_t place) {
    return (static_cast<uint32_t>(eight) << place) | (static_cast<uint32_t>(eight >> 32) << (place + bits));
}

constexpr uint64_t unfold_fields(uint32_t word, int32_t bits, int32_t place) {
    const uint32_t mask = 0x01010101U * ((1U << bits) - 1U);
    return ((word >> place) & mask) | (uint64_t{(word >> (place + bits)) & mask} << 32);
}

/// First byte, in the first region, of the rows that share a chunk with `row`, in the first chunk of the act group.
inline int64_t first_chunk(const TiledCodes& codes, const LayoutShape& shape, int64_t row, const ActGroup& group) {
    if (in_bands(codes.layout)) {
        return BandPlace(codes.n, row).codes(codes.padded_k, group);
    }
    const int64_t tile = row / shape.n_tile * (codes.padded_k / shape.k_chunk);
    return (tile + group.padded_begin / shape.k_chunk) * shape.chunk_bytes;
}

}  // namespace tmac
