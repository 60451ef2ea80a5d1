#include "layout/tiles.h"

#include <algorithm>
#include <cstring>

#include "core/bits.h"
#include "core/trit_byte.h"

// Every layout here stores, for one row, one region and 32 (lut), 8 (nibbles), 16 (crumbs) or 20 (trits) columns, an
// independent little word. A layout is therefore two functions: where that word lies, and how 32 plane bits (or 8 or 20
// codes) turn into it and back.

namespace tmac {
namespace {

// ---- 32 columns of a plane as one word, bit i = column i, zero past the end ----

uint32_t load_bits(const uint8_t* row, int64_t column, int64_t count) {
    const int64_t first = column / 8;
    if (column % 8 == 0 && count == 8) {  // nearly all of them: a copy of a known size is one instruction
        return row[first];
    }
    if (column % 8 == 0 && count == 32) {
        uint32_t whole = 0;
        std::memcpy(&whole, row + first, sizeof(whole));
        return whole;
    }
    const int64_t last = (column + count + 7) / 8;
    uint64_t word = 0;
    std::memcpy(&word, row + first, static_cast<size_t>(std::min<int64_t>(last - first, 8)));
    word >>= column % 8;
    return static_cast<uint32_t>(word & ((uint64_t{1} << count) - 1));
}

void or_bits(uint8_t* row, int64_t column, int64_t count, uint32_t bits) {
    const int64_t first = column / 8;
    const auto bytes = static_cast<size_t>((column + count + 7) / 8 - first);
    uint64_t word = 0;
    std::memcpy(&word, row + first, bytes);
    word |= (bits & ((uint64_t{1} << count) - 1)) << (column % 8);
    std::memcpy(row + first, &word, bytes);
}

// ---- quads: byte j of a row's four = nibble j | nibble j+4 << 4 ----

constexpr uint32_t spread_nibbles(uint32_t four) {  // nibble j -> byte j
    const uint32_t pairs = (four | (four << 8)) & 0x00ff00ffU;
    return (pairs | (pairs << 4)) & 0x0f0f0f0fU;
}

constexpr uint32_t gather_nibbles(uint32_t bytes) {
    const uint32_t pairs = (bytes | (bytes >> 4)) & 0x00ff00ffU;
    return (pairs | (pairs >> 8)) & 0xffffU;
}

void put_quad(uint8_t* chunk, int64_t row, uint32_t bits) {
    const uint32_t word = spread_nibbles(bits & 0xffffU) | (spread_nibbles(bits >> 16) << 4);
    std::memcpy(chunk + row * 4, &word, 4);
}

uint32_t get_quad(const uint8_t* chunk, int64_t row) {
    uint32_t word = 0;
    std::memcpy(&word, chunk + row * 4, 4);
    return gather_nibbles(word & 0x0f0f0f0fU) | (gather_nibbles((word >> 4) & 0x0f0f0f0fU) << 16);
}

// ---- rows: one byte per row and 8 columns, which is the plane's own byte ----

/// Byte of a row in its half of 32 rows. Rows 8q + 4 lane + i stand in bytes 2i of a 16-byte lane's half: unpacked to
/// int16 with `unpacklo` or `unpackhi`, the rows of an even q are the even words, and those of the next q the odd ones.
constexpr int64_t byte_of_row(int64_t row) {
    const int64_t q = row / 8 % 4;
    return (row / 4 % 2) * 16 + q / 2 * 8 + row % 4 * 2 + q % 2;
}

constexpr int64_t place_in_rows(int64_t row) { return row / 32 * 32 + byte_of_row(row); }

void put_row(uint8_t* chunk, int64_t row, uint32_t bits) {
    uint8_t* byte = chunk + place_in_rows(row);
    for (int64_t i = 0; i < 4; ++i) {
        byte[i * 64] = static_cast<uint8_t>(bits >> (8 * i));
    }
}

uint32_t get_row(const uint8_t* chunk, int64_t row) {
    const uint8_t* byte = chunk + place_in_rows(row);
    uint32_t bits = 0;
    for (int64_t i = 0; i < 4; ++i) {
        bits |= uint32_t{byte[i * 64]} << (8 * i);
    }
    return bits;
}

// ---- nibbles and crumbs: byte j of a row's four = fields of the codes j, j + 4, ... from its lowest bits on ----

/// How codes are divided between two regions.
struct Division {
    int32_t top_bits;
    int32_t rest_bits;  ///< 0 where there is no second region
};

Division division_of(Layout layout, int32_t bits) {
    if (layout == Layout::crumbs) {
        return {2, bits - 2};
    }
    return {4, bits > 4 ? rest_of_nibbles(bits) : 0};
}

bool in_codes(Layout layout) {
    return layout == Layout::nibbles || layout == Layout::wide_nibbles || layout == Layout::crumbs;
}

/// Eight fields of `bits` bits, a byte each, to a word's bits [place, place + 2 bits) of every byte.
uint32_t fold_fields(uint64_t eight, int32_t bits, int32_t place) {
    return (static_cast<uint32_t>(eight) << place) | (static_cast<uint32_t>(eight >> 32) << (place + bits));
}

uint64_t unfold_fields(uint32_t word, int32_t bits, int32_t place) {
    const uint32_t mask = 0x01010101U * ((1U << bits) - 1U);
    return ((word >> place) & mask) | (uint64_t{(word >> (place + bits)) & mask} << 32);
}

/// The words of a row in one chunk.
struct CodeWords {
    uint8_t* top;        ///< of the first 8 columns, or of 16 crumbs
    int64_t top_stride;  ///< to the next word
    uint8_t* rest;       ///< null where there is none
    int32_t rest_place;  ///< rows that share a byte of the last region: the row's first bit
    Division division;

    /// Adds 8 codes, a byte each, the top bit of the code in bit 7; they are the chunk's columns [8 part, 8 part + 8).
    void put(int32_t part, uint64_t eight) const {
        const int32_t at = 2 * part * division.top_bits;
        const uint64_t top_mask = kLowBits * ((1U << division.top_bits) - 1U);
        add(top + at / 8 * top_stride,
            fold_fields(eight >> (8 - division.top_bits) & top_mask, division.top_bits, at % 8));
        if (rest != nullptr) {
            const uint64_t rest_mask = kLowBits * ((1U << division.rest_bits) - 1U);
            const int32_t down = 8 - division.top_bits - division.rest_bits;
            add(rest,
                fold_fields(eight >> down & rest_mask, division.rest_bits, rest_place + 2 * part * division.rest_bits));
        }
    }

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

    static void add(uint8_t* bytes, uint32_t bits) {
        const uint32_t word = load(bytes) | bits;
        std::memcpy(bytes, &word, 4);
    }
};

// ---- trits: byte j of a row's four = codes j, j+4, ..., j+16 ----

/// 20 columns' bits of both planes.
struct TwoPlanes {
    uint32_t high;
    uint32_t low;
};

constexpr uint32_t kTritCodes = 243;

struct TritLookups {
    uint8_t byte[kTritCodes];  ///< of s + 81 code4
    TwoPlanes planes[256];     ///< of a byte, code j in bit 4j
};

consteval TritLookups make_trit_lookups() {
    TritLookups tables{};
    for (uint32_t i = 0; i < kTritCodes; ++i) {
        tables.byte[i] = static_cast<uint8_t>(trit_byte_of(i % 81, i / 81));
    }
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

/// Codes of the columns [4j, 4j + 4) in four bytes.
constexpr uint32_t four_codes(const TwoPlanes& bits, int j) {
    constexpr uint32_t kSpread = 0x00204081U;  // bit i of a nibble -> bit 8i
    constexpr uint32_t kOnes = 0x01010101U;
    return ((bits.low >> (4 * j) & 15U) * kSpread & kOnes) + 2 * ((bits.high >> (4 * j) & 15U) * kSpread & kOnes);
}

void put_trits(uint8_t* chunk, int64_t row, const TwoPlanes& bits) {
    const uint32_t first = four_codes(bits, 0) + 3 * four_codes(bits, 1);
    const uint32_t s = first + 9 * (four_codes(bits, 2) + 3 * four_codes(bits, 3));  // four of at most 80
    const uint32_t fifth = four_codes(bits, 4);
    for (int i = 0; i < 4; ++i) {
        chunk[row * 4 + i] = kTritLookups.byte[(s >> (8 * i) & 0xffU) + 81 * (fifth >> (8 * i) & 0xffU)];
    }
}

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

    /// First byte of the rows that share a chunk with this one, in the first chunk of the act group.
    uint8_t* first_chunk(const ActGroup& group) const {
        if (in_bands(codes.layout)) {
            return codes.data + BandPlace(codes.n, row).codes(codes.padded_k, group);
        }
        const int64_t tile = row / shape.n_tile * (codes.padded_k / shape.k_chunk);
        return codes.data + (tile + group.padded_begin / shape.k_chunk) * shape.chunk_bytes;
    }

    /// Where the codes of a chunk lie, of a layout that has codes.
    CodeWords words(uint8_t* chunk, int32_t bits) const {
        const Division division = division_of(codes.layout, bits);
        const int64_t in_top = row_in_chunk * 4;
        if (division.rest_bits == 0) {
            return {chunk + in_top, shape.n_tile * 4, nullptr, 0, division};
        }
        const int64_t index = (chunk - codes.data) / shape.chunk_bytes;
        const int64_t in_rest = in_top % shape.last_bytes;
        return {chunk + in_top, shape.n_tile * 4, codes.data + codes.region_stride + index * shape.last_bytes + in_rest,
                in_top == in_rest ? 0 : 4, division};
    }

    /// Calls visit(column, count, chunk) for every k_chunk columns.
    template <class Visit>
    void for_each(const std::vector<ActGroup>& act_groups, const Visit& visit) const {
        for (const ActGroup& group : act_groups) {
            uint8_t* chunk = first_chunk(group);
            for (int64_t at = 0; at < group.k_count; at += shape.k_chunk, chunk += shape.chunk_bytes) {
                visit(group.k_begin + at, std::min<int64_t>(shape.k_chunk, group.k_count - at), chunk);
            }
        }
    }
};

/// Eight codes of a row as bytes, shifted up so that the top bit of the code is bit 7.
uint64_t load_codes(const PlanesView& planes, int64_t row, int64_t column, int64_t count) {
    uint64_t eight = 0;
    for (int32_t plane = 0; plane < planes.bits; ++plane) {
        const auto bits = static_cast<uint8_t>(load_bits(planes.row(plane, row), column, count));
        eight |= spread_bits(bits) << (7 - plane);
    }
    return eight;
}

}  // namespace

void planes_to_layout(const PlanesView& planes, const std::vector<ActGroup>& act_groups, const TiledCodes& out,
                      int64_t row_begin, int64_t row_end) {
    const LayoutShape shape = layout_shape(out.layout, planes.bits);
    for (int64_t row = row_begin; row < row_end; ++row) {
        const RowChunks chunks{out, shape, row};
        const int64_t in_chunk = chunks.row_in_chunk;
        if (in_codes(out.layout)) {
            chunks.for_each(act_groups, [&](int64_t column, int64_t count, uint8_t* chunk) {
                const CodeWords words = chunks.words(chunk, planes.bits);
                for (int32_t part = 0; 8 * part < count; ++part) {
                    const int64_t left = std::min<int64_t>(8, count - 8 * part);
                    words.put(part, load_codes(planes, row, column + 8 * part, left));
                }
            });
            continue;
        }
        if (out.layout == Layout::trits) {
            chunks.for_each(act_groups, [&](int64_t column, int64_t count, uint8_t* chunk) {
                put_trits(chunk, in_chunk,
                          {load_bits(planes.row(0, row), column, count), load_bits(planes.row(1, row), column, count)});
            });
            continue;
        }
        for (int32_t plane = 0; plane < planes.bits; ++plane) {
            const uint8_t* source = planes.row(plane, row);
            const int64_t region = plane * out.region_stride;
            if (out.layout == Layout::planes) {
                std::memcpy(out.data + region + row * planes.row_bytes(), source,
                            static_cast<size_t>(planes.row_bytes()));
                continue;
            }
            const auto put = out.layout == Layout::rows ? put_row : put_quad;
            chunks.for_each(act_groups, [&](int64_t column, int64_t count, uint8_t* chunk) {
                put(chunk + region, in_chunk, load_bits(source, column, count));
            });
        }
    }
}

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
            const int64_t region = plane * in.region_stride;
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
