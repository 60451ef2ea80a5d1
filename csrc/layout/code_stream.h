#pragma once

#include <array>
#include <cstdint>

#include "core/range.h"

namespace tmac {

// The bit streams of other formats: codes of `bits` bits (1 to 8) follow each other from the least significant bit of
// the first byte on, across the borders of little-endian words.

/// One row: `count` codes from the `nbytes` bytes at `stream`, which hold at least count * bits bits.
void unpack_stream(const uint8_t* stream, int64_t nbytes, int32_t bits, int64_t count, uint8_t* codes);

/// A matrix of 32-bit words [height][width], row-major.
struct WordsView {
    const uint32_t* data;
    int64_t height;
    int64_t width;
};

/// GPTQ's qweight: every column is a stream that goes down the rows, at least count * bits bits long. Column c becomes
/// codes[c * count + i]; `columns` says which to do.
void unpack_down(const WordsView& words, int32_t bits, int64_t count, Range columns, uint8_t* codes);

/// AWQ's qweight: every row is a stream of `count` codes, of which eight at a time are out of order: the i-th of them
/// belongs to column lanes[i]. Row r, column c becomes codes[c * height + r]; `columns` says which to do and starts at
/// a multiple of 32, where a stream starts a word whatever its bits.
void unpack_across(const WordsView& words, int32_t bits, int64_t count, const std::array<uint8_t, 8>& lanes,
                   Range columns, uint8_t* codes);

}  // namespace tmac
