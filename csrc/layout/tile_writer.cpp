#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/bits.h"
#include "layout/folds.h"
#include "layout/tile_places.h"
#include "layout/tiles.h"

// Every layout stores, for one row and one region, an independent little word of four bytes for each unit of 8 to 32
// columns. So a layout is two things: where a unit lies, and the fold that turns 64 (trits: 40) bits of each plane of
// the region into the words of its units. Both are apart from the loops, which take a window of some columns of all
// rows of a tile: what is read are whole cache lines of each plane, and so is what is written, since 16 rows follow
// each other in a line.

namespace tmac {
namespace {

constexpr int64_t kMostColumns = 2048;   // of a window
constexpr int64_t kWindowOfCodes = 512;  // a line of these has 64
constexpr int64_t kMostUnits = kMostColumns / 8;
constexpr int64_t kMostBlocks = kMostColumns / 40;

/// Columns of a row that share a word.
struct Unit {
    int64_t column;
    int64_t offset;  ///< in the region, of the tile's first row
    int64_t count;   ///< columns that there are; the word's other ones are zero
};

/// One region, or the planes of a layout whose regions are all alike.
struct Region {
    uint8_t* data;
    int64_t chunk_bytes;
    int64_t unit_columns;
};

/// The units of a tile's rows, a window at a time.
class Windows {
public:
    Windows(const TiledCodes& codes, const std::vector<ActGroup>& act_groups, const Region& region, int32_t bits,
            int64_t row)
        : codes_(codes), groups_(act_groups), region_(region), shape_(layout_shape(codes.layout, bits)), row_(row) {}

    /// Fills `units` with at most `most` units; false at the end of the row.
    bool next(int64_t most) {
        count_ = 0;
        const int64_t unit_bytes = region_.chunk_bytes / (shape_.k_chunk / region_.unit_columns);
        while (count_ < most && group_ < groups_.size()) {
            const ActGroup& group = groups_[group_];
            const int64_t start = first_chunk(codes_, shape_, row_, group) / shape_.chunk_bytes * region_.chunk_bytes;
            for (; count_ < most && at_ < group.k_count; at_ += region_.unit_columns) {
                units[static_cast<size_t>(count_++)] = {group.k_begin + at_,
                                                        start + at_ / region_.unit_columns * unit_bytes,
                                                        std::min(region_.unit_columns, group.k_count - at_)};
            }
            if (at_ >= group.k_count) {
                at_ = 0;
                ++group_;
            }
        }
        return count_ > 0;
    }

    int64_t count() const { return count_; }

    /// Whether the units are whole, but for the last one, and follow each other from a plane's byte on.
    bool regular() const {
        bool is = units[0].column % 8 == 0;
        for (int64_t i = 1; i < count_; ++i) {
            is &= units[static_cast<size_t>(i)].column == units[0].column + i * region_.unit_columns;
        }
        return is;
    }

    std::array<Unit, kMostUnits> units;

private:
    const TiledCodes& codes_;
    const std::vector<ActGroup>& groups_;
    const Region& region_;
    LayoutShape shape_;
    int64_t row_;
    size_t group_ = 0;
    int64_t at_ = 0;
    int64_t count_ = 0;
};

constexpr uint64_t low_bits(int64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

/// `count` bits, at most 56 unless the column is the first of a byte, from `column` of a row on; `end` is where the
/// planes end.
TMAC_ALWAYS_INLINE uint64_t load_bits(const uint8_t* row, const uint8_t* end, int64_t column, int64_t count) {
    const uint8_t* first = row + column / 8;
    uint64_t word = 0;
    if (end - first >= 8) {  // what is behind the row belongs to no column
        std::memcpy(&word, first, 8);
    } else {
        std::memcpy(&word, first, static_cast<size_t>(end - first));
    }
    return word >> (column % 8) & low_bits(count);
}

/// The window's columns of a plane's row, a word for each block of `block_units` units.
void load_window(const uint8_t* row, const uint8_t* end, const Windows& window, bool regular, int64_t block_units,
                 int64_t unit_columns, uint64_t* words) {
    const auto& units = window.units;
    const int64_t last = window.count() - 1;
    if (regular) {
        const int64_t begin = units[0].column;
        const int64_t stop = units[static_cast<size_t>(last)].column + units[static_cast<size_t>(last)].count;
        const int64_t step = block_units * unit_columns;
        int64_t column = begin;
        for (; column + step <= stop && row + column / 8 + 8 <= end; column += step, ++words) {
            std::memcpy(words, row + column / 8, 8);
        }
        for (; column < stop; column += step, ++words) {
            *words = load_bits(row, end, column, std::min(step, stop - column));
        }
        return;
    }
    for (int64_t first = 0; first <= last; first += block_units, ++words) {
        *words = 0;
        for (int64_t i = 0; i < block_units && first + i <= last; ++i) {
            const Unit& unit = units[static_cast<size_t>(first + i)];
            *words |= load_bits(row, end, unit.column, unit.count) << (i * unit_columns);
        }
    }
}

/// Where a row of a tile has its words in a unit.
struct RowPlace {
    int64_t offset;
    int32_t shift;
};

RowPlace place_of_row(Layout layout, const LayoutShape& shape, int64_t unit_row_bytes, int64_t row) {
    const int64_t in_tile = row % shape.n_tile;
    if (layout == Layout::rows) {
        return {place_in_rows(in_tile), 0};
    }
    const int64_t rows = unit_row_bytes / 4;  // fewer than a tile's: two rows have each byte
    return {in_tile % rows * 4, in_tile < rows ? 0 : 4};
}

/// Rows of planes that lie one behind the other.
struct PlaneRows {
    const PlanesView& planes;
    int32_t first_plane;

    const uint8_t* end() const { return planes.row(planes.bits - 1, planes.n - 1) + planes.row_bytes(); }
};

/// One region of some rows.
template <class FoldOf>
void write_planes(const PlaneRows& source, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                  const Region& region, Range rows, int64_t first) {
    constexpr int64_t kBlock = FoldOf::kUnits * FoldOf::kColumns;
    constexpr int64_t kUnits = FoldOf::kWindow / kBlock * FoldOf::kUnits;
    const LayoutShape shape = layout_shape(out.layout, source.planes.bits);
    const int64_t unit_bytes = region.chunk_bytes / (shape.k_chunk / region.unit_columns);
    const uint8_t* end = source.end();
    for (int64_t row = rows.begin; row < rows.end;) {
        const int64_t tile_end = std::min(rows.end, (row + first) / shape.n_tile * shape.n_tile + shape.n_tile - first);
        Windows window(out, act_groups, region, source.planes.bits, row + first);
        while (window.next(kUnits)) {
            const bool regular = window.regular();
            for (int64_t r = row; r < tile_end; ++r) {
                uint64_t columns[FoldOf::kPlanes][kMostBlocks];
                for (int64_t plane = 0; plane < FoldOf::kPlanes; ++plane) {
                    const uint8_t* bits = source.planes.row(source.first_plane + static_cast<int32_t>(plane), r);
                    if constexpr (FoldOf::kWindow < kMostColumns) {
                        TMAC_PREFETCH(bits + (window.units[0].column + FoldOf::kWindow) / 8);
                    }
                    load_window(bits, end, window, regular, FoldOf::kUnits, FoldOf::kColumns, columns[plane]);
                }
                const RowPlace place = place_of_row(out.layout, shape, unit_bytes, r + first);
                uint8_t* at = region.data + place.offset;
                const Unit* unit = window.units.data();
                const Unit* last = unit + window.count();
                for (int64_t block = 0; unit < last; ++block, unit += FoldOf::kUnits) {
                    uint64_t planes[FoldOf::kPlanes];
                    uint32_t words[FoldOf::kUnits];
                    for (int64_t plane = 0; plane < FoldOf::kPlanes; ++plane) {
                        planes[plane] = columns[plane][block];
                    }
                    FoldOf::run(planes, words);
                    if (last - unit >= FoldOf::kUnits) {
                        for (int64_t i = 0; i < FoldOf::kUnits; ++i) {
                            FoldOf::put(at + unit[i].offset, words[i], place.shift);
                        }
                        continue;
                    }
                    for (int64_t i = 0; i < last - unit; ++i) {
                        FoldOf::put(at + unit[i].offset, words[i], place.shift);
                    }
                }
            }
        }
        row = tile_end;
    }
}

/// Fields of codes in the words of one region.
struct Field {
    Region region;
    int32_t bits;
    int32_t first_plane;
};

/// The regions of a layout that has codes in them: one or two.
std::vector<Field> fields_of(const TiledCodes& out, int32_t bits) {
    const LayoutShape shape = layout_shape(out.layout, bits);
    const Division division = division_of(out.layout, bits);
    std::vector<Field> fields = {
        {{out.data, shape.chunk_bytes, 32 / division.top_bits}, division.top_bits, 0},
    };
    if (division.rest_bits != 0) {
        const int64_t columns = std::min<int64_t>(shape.k_chunk, 32 / division.rest_bits);
        fields.push_back(
            {{out.data + out.regions.of[1], shape.last_bytes, columns}, division.rest_bits, division.top_bits});
    }
    return fields;
}

void write_field(const PlanesView& planes, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                 const Field& field, Range rows, int64_t first) {
    const auto write = [&](auto fold) {
        write_planes<decltype(fold)>({planes, field.first_plane}, act_groups, out, field.region, rows, first);
    };
    switch (field.bits) {
        case 1:
            return field.region.unit_columns == 32 ? write(BitFold()) : write(HalfBitFold());
        case 2:
            return write(CrumbFold());
        default:
            return planes.bits - field.first_plane == 3 ? write(NibbleFold<3>()) : write(NibbleFold<4>());
    }
}

/// The word of a unit of kColumns codes, of which `count` are there: fields of kBits bits from bit `down` on.
template <int32_t kBits, int64_t kColumns>
TMAC_ALWAYS_INLINE uint32_t fold_codes(const uint8_t* codes, int64_t count, int32_t down) {
    constexpr uint64_t kMask = kLowBits * ((1U << kBits) - 1U);
    uint32_t word = 0;
    for (int32_t part = 0; part < kColumns / 8 && 8 * part < count; ++part) {
        uint64_t eight = 0;
        if (count - 8 * part >= 8) {
            std::memcpy(&eight, codes + 8 * part, 8);
        } else {
            std::memcpy(&eight, codes + 8 * part, static_cast<size_t>(count - 8 * part));
        }
        eight = down >= 0 ? eight >> down : eight << -down;  // negative: a code has fewer bits than the field
        word |= fold_fields(eight & kMask, kBits, 2 * part * kBits);
    }
    return word;
}

/// One field of some rows from codes.
template <int32_t kBits, int64_t kColumns>
void write_codes(const CodesView& codes, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                 const Field& field, Range rows, int64_t first) {
    constexpr bool kShared = kBits * kColumns < 32;  // two rows have each word
    const LayoutShape shape = layout_shape(out.layout, codes.bits);
    const Region& region = field.region;
    const int64_t unit_bytes = region.chunk_bytes / (shape.k_chunk / kColumns);
    const int32_t down = codes.bits - field.first_plane - kBits;
    const auto put = [](uint8_t* at, uint32_t word, int32_t shift) {
        kShared ? HalfBitFold::put(at, word, shift) : Fold::put(at, word, shift);
    };
    for (int64_t row = rows.begin; row < rows.end;) {
        const int64_t tile_end = std::min(rows.end, (row + first) / shape.n_tile * shape.n_tile + shape.n_tile - first);
        Windows window(out, act_groups, region, codes.bits, row + first);
        while (window.next(kWindowOfCodes / kColumns)) {
            const bool regular = window.regular();
            const Unit* units = window.units.data();
            const int64_t last = window.count() - 1;
            for (int64_t r = row; r < tile_end; ++r) {
                const RowPlace place = place_of_row(out.layout, shape, unit_bytes, r + first);
                uint8_t* at = region.data + place.offset;
                const uint8_t* of_row = codes.data + r * codes.k;
                const uint8_t* in_row = of_row + units[0].column;
                int64_t i = 0;
                if (regular && down >= 0) {
                    for (; i < last; ++i, in_row += kColumns) {
                        put(at + units[i].offset, fold_codes<kBits, kColumns>(in_row, kColumns, down), place.shift);
                    }
                }
                for (; i <= last; ++i) {
                    const uint32_t word = fold_codes<kBits, kColumns>(of_row + units[i].column, units[i].count, down);
                    put(at + units[i].offset, word, place.shift);
                }
            }
        }
        row = tile_end;
    }
}

}  // namespace

void planes_to_layout(const PlanesView& planes, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                      Range rows, int64_t first) {
    if (in_codes(out.layout)) {
        for (const Field& field : fields_of(out, planes.bits)) {
            write_field(planes, act_groups, out, field, rows, first);
        }
        return;
    }
    const LayoutShape shape = layout_shape(out.layout, planes.bits);
    if (out.layout == Layout::trits) {
        write_planes<TritFold>({planes, 0}, act_groups, out, {out.data, shape.chunk_bytes, 20}, rows, first);
        return;
    }
    for (int32_t plane = 0; plane < planes.bits; ++plane) {
        const Region region{out.data + out.regions.of[plane], shape.chunk_bytes, 32};
        if (out.layout == Layout::planes) {
            std::memcpy(region.data + (first + rows.begin) * planes.row_bytes(), planes.row(plane, rows.begin),
                        static_cast<size_t>((rows.end - rows.begin) * planes.row_bytes()));
        } else if (out.layout == Layout::rows) {
            write_planes<RowFold>({planes, plane}, act_groups, out, region, rows, first);
        } else {
            write_planes<QuadFold>({planes, plane}, act_groups, out, region, rows, first);
        }
    }
}

void codes_to_layout(const CodesView& codes, const std::vector<ActGroup>& act_groups, const TiledCodes& out, Range rows,
                     int64_t first) {
    if (in_codes(out.layout)) {
        for (const Field& field : fields_of(out, codes.bits)) {
            const bool half = field.region.unit_columns == 16;
            const auto write = field.bits == 1   ? half ? write_codes<1, 16> : write_codes<1, 32>
                               : field.bits == 2 ? write_codes<2, 16>
                                                 : write_codes<4, 8>;
            write(codes, act_groups, out, field, rows, first);
        }
        return;
    }
    constexpr int64_t kRows = 64;  // their planes stay in the cache
    const int64_t row_bytes = (codes.k + 7) / 8;
    std::vector<uint8_t> planes(static_cast<size_t>(codes.bits * kRows * row_bytes));
    for (int64_t row = rows.begin; row < rows.end;) {
        const int64_t end = std::min(rows.end, (row + first) / kRows * kRows + kRows - first);
        const int64_t count = end - row;
        for (int64_t r = row; r < end; ++r) {
            codes_to_planes(codes.data + r * codes.k, codes.k, codes.bits, planes.data() + (r - row) * row_bytes,
                            count * row_bytes);
        }
        planes_to_layout({planes.data(), codes.bits, count, codes.k}, act_groups, out, {0, count}, first + row);
        row = end;
    }
}

}  // namespace tmac
