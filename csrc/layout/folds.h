#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"
#include "core/trit_byte.h"
#include "layout/bit_moves.h"

// The bits of planes become the words of the layouts: a fold takes kUnits * kColumns bits of each of kPlanes planes,
// and gives a word of four bytes for each kColumns columns. `put` stores one. kWindow columns of a tile's rows are done
// before the next ones: of each row and plane, four cache lines are read faster than one, but the lines that are
// written should stay in the L1 cache until they are full.

namespace tmac {

static TMAC_ALWAYS_INLINE void store_word(uint8_t* at, uint32_t word) { std::memcpy(at, &word, sizeof(word)); }

static TMAC_ALWAYS_INLINE uint32_t lower(uint64_t word) { return static_cast<uint32_t>(word); }
static TMAC_ALWAYS_INLINE uint32_t upper(uint64_t word) { return static_cast<uint32_t>(word >> 32); }

struct Fold {
    static constexpr int64_t kWindow = 2048;

    static void put(uint8_t* at, uint32_t word, int32_t /*shift*/) { store_word(at, word); }
};

/// quads: byte j = nibble j | nibble j + 4 << 4.
struct QuadFold : Fold {
    static constexpr int64_t kPlanes = 1, kUnits = 2, kColumns = 32;

    static void run(const uint64_t (&planes)[1], uint32_t (&words)[2]) {
        const uint64_t both = shuffle_nibbles(planes[0]);
        words[0] = lower(both);
        words[1] = upper(both);
    }
};

/// rows: the plane's own bytes, 64 bytes apart.
struct RowFold {
    static constexpr int64_t kPlanes = 1, kUnits = 2, kColumns = 32;
    static constexpr int64_t kWindow = 512;  // a line for every 8 columns is written

    static void run(const uint64_t (&planes)[1], uint32_t (&words)[2]) {
        words[0] = lower(planes[0]);
        words[1] = upper(planes[0]);
    }

    static void put(uint8_t* at, uint32_t word, int32_t /*shift*/) {
        for (int i = 0; i < 4; ++i) {
            at[i * 64] = static_cast<uint8_t>(word >> (8 * i));
        }
    }
};

/// Four bits of a code: byte j = code j | code j + 4 << 4. kGiven planes, the others are zero.
template <int64_t kGiven>
struct NibbleFold : Fold {
    static constexpr int64_t kPlanes = kGiven, kUnits = 8, kColumns = 8;

    static void run(const uint64_t (&planes)[kGiven], uint32_t (&words)[8]) {
        uint64_t bit3 = planes[0];
        uint64_t bit2 = planes[1];
        uint64_t bit1 = planes[2];
        uint64_t bit0 = kGiven > 3 ? planes[kGiven - 1] : 0;
        planes_to_nibbles(bit3, bit2, bit1, bit0);
        words[0] = lower(bit0);
        words[1] = lower(bit1);
        words[2] = lower(bit2);
        words[3] = lower(bit3);
        words[4] = upper(bit0);
        words[5] = upper(bit1);
        words[6] = upper(bit2);
        words[7] = upper(bit3);
    }
};

/// Two bits of a code: byte j = codes j, j + 4, j + 8 and j + 12.
struct CrumbFold : Fold {
    static constexpr int64_t kPlanes = 2, kUnits = 4, kColumns = 16;

    static void run(const uint64_t (&planes)[2], uint32_t (&words)[4]) {
        uint64_t even = planes[1];
        uint64_t odd = planes[0];
        exchange(even, odd, 1, 0x5555555555555555ULL);  // to the codes of even and of odd columns
        for (uint64_t* each : {&even, &odd}) {          // of 16 bits' eight codes first the even ones
            *each = exchange(*each, 2, 0x0c0c0c0c0c0c0c0cULL);
            *each = exchange(*each, 4, 0x00f000f000f000f0ULL);
        }
        exchange(even, odd, 8, 0x00ff00ff00ff00ffULL);
        exchange(even, odd, 16, 0x0000ffff0000ffffULL);
        words[0] = lower(even);
        words[1] = lower(odd);
        words[2] = upper(even);
        words[3] = upper(odd);
    }
};

/// One bit of a code: byte j = codes j, j + 4, ..., j + 28.
struct BitFold : Fold {
    static constexpr int64_t kPlanes = 1, kUnits = 2, kColumns = 32;

    static void run(const uint64_t (&planes)[1], uint32_t (&words)[2]) {
        const uint64_t both = shuffle_nibbles(transpose_nibbles(planes[0]));
        words[0] = lower(both);
        words[1] = upper(both);
    }
};

/// One bit of a code, rows 16 apart in a byte: half of byte j = codes j, j + 4, j + 8 and j + 12.
struct HalfBitFold {
    static constexpr int64_t kPlanes = 1, kUnits = 4, kColumns = 16;
    static constexpr int64_t kWindow = 2048;

    static void run(const uint64_t (&planes)[1], uint32_t (&words)[4]) {
        const uint64_t nibbles = transpose_nibbles(planes[0]);
        const uint64_t first = spread_nibbles(lower(nibbles));
        const uint64_t second = spread_nibbles(upper(nibbles));
        words[0] = lower(first);
        words[1] = upper(first);
        words[2] = lower(second);
        words[3] = upper(second);
    }

    static void put(uint8_t* at, uint32_t word, int32_t shift) {
        uint32_t both = 0;
        std::memcpy(&both, at, sizeof(both));
        store_word(at, both | word << shift);
    }
};

/// The byte of five codes; of code j, bits 2 i and 2 i + 1 of the index, where i of the codes is 0, 2, 1, 3, 4.
struct TritBytes {
    uint8_t of[1024];
};

consteval TritBytes make_trit_bytes() {
    TritBytes bytes{};
    for (uint32_t index = 0; index < 1024; ++index) {
        const auto code = [&](uint32_t i) { return index >> (2 * i) & 3U; };
        const uint32_t s = code(0) + 3 * code(2) + 9 * code(1) + 27 * code(3);
        bytes.of[index] = s > 80 || code(4) > 2 ? uint8_t{0} : static_cast<uint8_t>(trit_byte_of(s, code(4)));
    }
    return bytes;
}

inline constexpr TritBytes kTritBytes = make_trit_bytes();

/// trits: byte j = codes j, j + 4, ..., j + 16.
struct TritFold : Fold {
    static constexpr int64_t kPlanes = 2, kUnits = 2, kColumns = 20;

    static void run(const uint64_t (&planes)[2], uint32_t (&words)[2]) {
        uint64_t even = planes[1];
        uint64_t odd = planes[0];
        exchange(even, odd, 1, 0x5555555555555555ULL);  // to the codes of even and of odd columns
        constexpr uint64_t kEvery4th = 0x3333333333ULL;
        const uint64_t of_bytes[4] = {even & kEvery4th, odd & kEvery4th, even >> 2 & kEvery4th, odd >> 2 & kEvery4th};
        words[0] = words[1] = 0;
        for (int j = 0; j < 4; ++j) {
            constexpr uint64_t kFour = 0xffULL | 0xffULL << 20;
            constexpr uint64_t kFifth = 0x300ULL | 0x300ULL << 20;
            const uint64_t codes = of_bytes[j];
            const uint64_t index = ((codes | codes >> 6) & kFour) | (codes >> 8 & kFifth);  // of both units
            words[0] |= uint32_t{kTritBytes.of[index & 0x3ffU]} << (8 * j);
            words[1] |= uint32_t{kTritBytes.of[index >> 20]} << (8 * j);
        }
    }
};

}  // namespace tmac
