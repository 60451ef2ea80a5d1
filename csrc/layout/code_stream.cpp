#include "layout/code_stream.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/portable.h"

namespace tmac {
namespace {

constexpr int64_t kLine = 64;         // codes that are written at once: a cache line
constexpr int64_t kWordColumns = 16;  // a cache line of words
constexpr int64_t kBlock = 32;        // codes of `bits` whole words

constexpr uint64_t low_bits(int count) { return (1ULL << count) - 1; }

/// Eight codes in the low 8 * Bits bits to eight bytes: four and four move apart, then two and two, then one and one.
template <int Bits>
TMAC_ALWAYS_INLINE constexpr uint64_t spread_codes(uint64_t eight) {
    if constexpr (Bits < 8) {
        constexpr uint64_t kFour = low_bits(4 * Bits);
        constexpr uint64_t kTwo = low_bits(2 * Bits) * 0x0000000100000001ULL;
        constexpr uint64_t kOne = low_bits(Bits) * 0x0001000100010001ULL;
        eight = (eight & kFour) | ((eight & (kFour << (4 * Bits))) << (32 - 4 * Bits));
        eight = (eight & kTwo) | ((eight & (kTwo << (2 * Bits))) << (16 - 2 * Bits));
        eight = (eight & kOne) | ((eight & (kOne << Bits)) << (8 - Bits));
    }
    return eight;
}

/// The next eight codes; `stream` has eight readable bytes, of which those past the codes are ignored.
template <int Bits>
TMAC_ALWAYS_INLINE uint64_t load_codes(const uint8_t* stream) {
    uint64_t eight = 0;
    std::memcpy(&eight, stream, sizeof(eight));
    return spread_codes<Bits>(eight);
}

template <int Bits>
void unpack_row(const uint8_t* stream, int64_t nbytes, int64_t count, uint8_t* codes) {
    int64_t at = 0;
    int64_t byte = 0;
    for (; at + 8 <= count && byte + 8 <= nbytes; at += 8, byte += Bits) {
        const uint64_t eight = load_codes<Bits>(stream + byte);
        std::memcpy(codes + at, &eight, sizeof(eight));
    }
    for (; at < count; at += 8, byte += Bits) {
        uint8_t tail[8] = {};
        std::memcpy(tail, stream + byte, static_cast<size_t>(std::min<int64_t>(Bits, nbytes - byte)));
        const uint64_t eight = load_codes<Bits>(tail);
        std::memcpy(codes + at, &eight, static_cast<size_t>(std::min<int64_t>(8, count - at)));
    }
}

/// Columns of one cache line of words, 64 codes at a time: what is read and what is written are whole lines.
template <int Bits>
void down_columns(const WordsView& words, int64_t count, Range columns, uint8_t* codes) {
    for (int64_t first = columns.begin; first < columns.end; first += kWordColumns) {
        const int64_t last = std::min(columns.end, first + kWordColumns);
        for (int64_t at = 0; at < count; at += kLine) {
            const int64_t row = at / kBlock * Bits;
            const int64_t height = std::min<int64_t>(2 * Bits, words.height - row);
            for (int64_t column = first; column < last; ++column) {
                uint32_t stream[2 * Bits + 2] = {};  // two more, because eight bytes are read at any byte
                for (int64_t word = 0; word < height; ++word) {
                    stream[word] = words.data[(row + word) * words.width + column];
                }
                uint64_t line[8];
                for (int64_t eight = 0; eight < 8; ++eight) {
                    line[eight] = load_codes<Bits>(reinterpret_cast<const uint8_t*>(stream) + eight * Bits);
                }
                std::memcpy(codes + column * count + at, line, static_cast<size_t>(std::min(kLine, count - at)));
            }
        }
    }
}

/// 8 x 8 bytes: byte i of row j becomes byte j of row i.
void transpose_bytes(uint64_t (&rows)[8]) {
    for (int i = 0; i < 4; ++i) {
        const uint64_t swap = (rows[i] >> 32 ^ rows[i + 4]) & 0x00000000ffffffffULL;
        rows[i] ^= swap << 32;
        rows[i + 4] ^= swap;
    }
    for (const int i : {0, 1, 4, 5}) {
        const uint64_t swap = (rows[i] >> 16 ^ rows[i + 2]) & 0x0000ffff0000ffffULL;
        rows[i] ^= swap << 16;
        rows[i + 2] ^= swap;
    }
    for (const int i : {0, 2, 4, 6}) {
        const uint64_t swap = (rows[i] >> 8 ^ rows[i + 1]) & 0x00ff00ff00ff00ffULL;
        rows[i] ^= swap << 8;
        rows[i + 1] ^= swap;
    }
}

/// Tiles of 32 columns x 64 rows: a row of a tile is `Bits` words, and what is written are whole cache lines.
template <int Bits>
void across_columns(const WordsView& words, int64_t count, const std::array<uint8_t, 8>& lanes, Range columns,
                    uint8_t* codes) {
    const int64_t height = words.height;
    for (int64_t first = columns.begin; first < columns.end; first += kBlock) {
        const int64_t word = first / kBlock * Bits;
        const int64_t tile_words = std::min<int64_t>(Bits, words.width - word);
        const int64_t tile_columns = std::min(kBlock, std::min(columns.end, count) - first);
        for (int64_t row = 0; row < height; row += kLine) {
            const int64_t tile_rows = std::min(kLine, height - row);
            uint64_t tile[kBlock][kLine / 8] = {};
            for (int64_t octet = 0; octet * 8 < tile_rows; ++octet) {
                uint32_t streams[8][Bits + 2] = {};
                for (int64_t i = 0; i < std::min<int64_t>(8, tile_rows - octet * 8); ++i) {
                    const uint32_t* source = words.data + (row + octet * 8 + i) * words.width + word;
                    std::memcpy(streams[i], source, static_cast<size_t>(tile_words) * sizeof(uint32_t));
                }
                for (int64_t eight = 0; eight < kBlock / 8; ++eight) {
                    uint64_t square[8];
                    for (int64_t i = 0; i < 8; ++i) {
                        square[i] = load_codes<Bits>(reinterpret_cast<const uint8_t*>(streams[i]) + eight * Bits);
                    }
                    transpose_bytes(square);
                    for (size_t i = 0; i < 8; ++i) {
                        tile[eight * 8 + lanes[i]][octet] = square[i];
                    }
                }
            }
            for (int64_t column = 0; column < tile_columns; ++column) {
                std::memcpy(codes + (first + column) * height + row, tile[column], static_cast<size_t>(tile_rows));
            }
        }
    }
}

/// `run` with the bits as a constant.
template <class Run>
void with_bits(int32_t bits, const Run& run) {
    switch (bits) {
        case 1:
            return run(std::integral_constant<int, 1>());
        case 2:
            return run(std::integral_constant<int, 2>());
        case 3:
            return run(std::integral_constant<int, 3>());
        case 4:
            return run(std::integral_constant<int, 4>());
        case 5:
            return run(std::integral_constant<int, 5>());
        case 6:
            return run(std::integral_constant<int, 6>());
        case 7:
            return run(std::integral_constant<int, 7>());
        default:
            return run(std::integral_constant<int, 8>());
    }
}

}  // namespace

void unpack_stream(const uint8_t* stream, int64_t nbytes, int32_t bits, int64_t count, uint8_t* codes) {
    with_bits(bits, [&](auto constant) { unpack_row<constant()>(stream, nbytes, count, codes); });
}

void unpack_down(const WordsView& words, int32_t bits, int64_t count, Range columns, uint8_t* codes) {
    with_bits(bits, [&](auto constant) { down_columns<constant()>(words, count, columns, codes); });
}

void unpack_across(const WordsView& words, int32_t bits, int64_t count, const std::array<uint8_t, 8>& lanes,
                   Range columns, uint8_t* codes) {
    with_bits(bits, [&](auto constant) { across_columns<constant()>(words, count, lanes, columns, codes); });
}

}  // namespace tmac
