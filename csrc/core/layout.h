#pragma once

#include <cstdint>

#include "core/quant_spec.h"

namespace tmac {

/// Memory order of the codes of a packed weight. Regions are planes, most significant first, unless said otherwise, so
/// that the leading regions alone are a weight of fewer bits.
enum class Layout : uint8_t {
    planes,      ///< the file format: [bits][n][ceil(k/8)], bit i of a byte is column 8j+i
    rows,        ///< 8 columns of 64 rows in 64 bytes, one per row, two 4-column nibbles each; in bands
    quads,       ///< tiles of 32 rows; 32 columns of 16 rows in 64 bytes, four per row, eight 4-column nibbles
    nibbles,     ///< tiles of 16 rows; 8 columns in 64 bytes, four per row; regions: top 4 bits of a code, and the rest
    wide_quads,  ///< quads in tiles of 64 rows
    wide_nibbles,  ///< nibbles in tiles of 32 rows
    bands,         ///< quads of 64 rows; in bands
    trits,         ///< ternary; tiles of 64 rows; 20 columns of 16 rows in 64 bytes, four per row (core/trit_byte.h)
    crumbs,        ///< 2 or 3 bits in groups of 16; tiles of 32 rows; regions: top 2 bits of a code, and the third
};
inline constexpr int kNumLayouts = 9;

/// Regions of a weight at most: the canonical planes of 8 bits. Layouts of tiles have at most four.
inline constexpr int kMaxRegions = 8;
inline constexpr int kMaxTiledRegions = 4;

/// Where the regions of a weight lie, in bytes from its first. They need not lie in one buffer.
struct RegionOffsets {
    int64_t of[kMaxRegions];
};

/// Regions that lie `stride` bytes apart.
constexpr RegionOffsets regions_apart(int64_t stride) {
    RegionOffsets offsets{};
    for (int region = 0; region < kMaxRegions; ++region) {
        offsets.of[region] = region * stride;
    }
    return offsets;
}

/// Sets of layouts.
using LayoutSet = uint16_t;
static_assert(kNumLayouts <= 16);
constexpr LayoutSet bit_of(Layout layout) { return static_cast<LayoutSet>(1U << static_cast<int>(layout)); }

/// What sizes and loops need to know of a layout.
struct LayoutShape {
    int32_t n_tile;       ///< rows per tile; the last tile is filled up with zero codes and zero scales
    int32_t k_chunk;      ///< act groups are padded to a multiple of it
    int32_t chunk_bytes;  ///< bytes of a region per tile and k_chunk columns; 0 for canonical planes
    int32_t num_regions;  ///< per weight
    int32_t last_bytes;   ///< chunk_bytes of the last region, which may be another
};

/// Bits of a code beside the top four, as Layout::nibbles keeps them: as many as there are, but four for three.
constexpr int32_t rest_of_nibbles(int32_t bits) { return bits <= 6 ? bits - 4 : 4; }

/// A row has four bytes in each register of a region. As these hold 8 top halves, and as many columns of the rest as
/// fill them, 5 and 6 bits have chunks of 32 and 16 columns.
constexpr LayoutShape nibbles_shape(int32_t n_tile, int32_t bits) {
    const int32_t registers = bits > 4 ? 4 / rest_of_nibbles(bits) : 1;
    return {n_tile, 8 * registers, 4 * n_tile * registers, bits > 4 ? 2 : 1, 4 * n_tile};
}

constexpr LayoutShape layout_shape(Layout layout, int32_t bits) {
    switch (layout) {
        case Layout::quads:
            return {32, 32, 128, bits, 128};
        case Layout::rows:
        case Layout::wide_quads:
        case Layout::bands:
            return {64, 32, 256, bits, 256};
        case Layout::nibbles:
            return nibbles_shape(16, bits);
        case Layout::wide_nibbles:
            return nibbles_shape(32, bits);
        case Layout::trits:
            return {64, 20, 256, 1, 256};
        case Layout::crumbs:
            return bits > 2 ? LayoutShape{32, 16, 128, 2, 64} : LayoutShape{32, 16, 128, 1, 128};
        case Layout::planes:
            break;
    }
    return {1, 8, 0, bits, 0};
}

/// Element type of scales, zeros and offsets. i8: sub-values of two-level scales.
enum class GroupType : uint8_t { none, u8, f16, f32, i8 };
inline constexpr int kNumGroupTypes = 5;

constexpr int64_t element_bytes(GroupType type) {
    constexpr int64_t kBytes[kNumGroupTypes] = {0, 1, 2, 4, 1};
    return kBytes[static_cast<int>(type)];
}

/// What scales of a format are stored as.
constexpr GroupType scale_type_of(ScaleFormat format) {
    return format == ScaleFormat::f16 ? GroupType::f16 : format == ScaleFormat::f32 ? GroupType::f32 : GroupType::i8;
}

/// Columns that share a super-scale and a super-offset, both f16. A group takes those of its first column.
inline constexpr int32_t kSuperColumns = 256;

constexpr int64_t num_super_groups(int64_t k) { return (k + kSuperColumns - 1) / kSuperColumns; }

/// A run of columns whose activations share one scale. It lies inside one weight group.
///
/// In memory (tables, int8 activations, kernel layouts) every act group starts at `padded_begin`, a multiple of the
/// layout's k_chunk; the columns that fill it up have zero activations, so whatever codes stand there count nothing.
struct ActGroup {
    int32_t k_begin;
    int32_t k_count;
    int32_t padded_begin;
    int32_t padded_count;
    int32_t weight_group;

    /// Index of the super values. Groups of two-level scales are no longer than an act group: k_begin is their first
    /// column.
    constexpr int64_t super_group() const { return static_cast<uint32_t>(k_begin) / uint32_t{kSuperColumns}; }
};

/// Where the group values of some rows lie, as indices of the first row's: in the scales and zeros, and, where these
/// have two levels, in the super values.
struct GroupPlace {
    int64_t value;
    int64_t super_value;

    /// The same for rows further on, in the same tile or band.
    constexpr GroupPlace operator+(int64_t rows) const { return {value + rows, super_value + rows}; }
};

/// Layouts in bands of 256 rows, where one act group of all rows comes before the next.
constexpr bool in_bands(Layout layout) { return layout == Layout::rows || layout == Layout::bands; }

/// Rows of a band. Their results of one token fill 1 KiB of the L1 cache.
inline constexpr int64_t kBandRows = 256;

/// Where a layout in bands keeps a row. In a band of a region come act group after act group; in a group 64 rows after
/// 64 rows; of these all chunks. Group values: [band][num_groups][rows of the band].
struct BandPlace {
    int64_t first;  ///< row of the band
    int64_t rows;   ///< of the band in memory: kBandRows, fewer in the last one
    int64_t row;    ///< within the band

    constexpr BandPlace(int64_t n, int64_t any_row)
        : first(any_row / kBandRows * kBandRows), rows((n + 63) / 64 * 64 - first), row(any_row - first) {
        rows = rows < kBandRows ? rows : kBandRows;
    }

    /// First byte, in a region, of the act group's codes of the 64 rows that the row is one of.
    constexpr int64_t codes(int64_t padded_k, const ActGroup& group) const {
        return (first * padded_k + rows * group.padded_begin + row / 64 * 64 * group.padded_count) / 8;
    }

    /// Index of a row's value of one of `num_groups` groups (or super-groups).
    constexpr int64_t value(int64_t num_groups, int64_t group) const { return first * num_groups + rows * group + row; }
};

/// Rows whose memory is read from front to back when they are multiplied together. A thread's share ends at a multiple
/// of them where it can.
constexpr int64_t rows_together(Layout layout, int32_t bits) {
    return in_bands(layout) ? kBandRows : layout_shape(layout, bits).n_tile;
}

}  // namespace tmac
