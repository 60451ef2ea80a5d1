#pragma once

#include <utility>

#include "kernels/avx2/mad_dot.h"

// Codes of the class `mad` as bytes: a vector holds 8 rows, in each row's four bytes four columns.
//
// Planes become codes by halving steps, each joining two registers, never by single bits:
//
//   planes a b         2-bit fields                        bits of a byte
//   even = (a << 1 & aa) | (b & 55)                        a6b6 a4b4 a2b2 a0b0
//   odd  = (a & aa) | (b >> 1 & 55)                        a7b7 a5b5 a3b3 a1b1
//
// and two such pairs become 4-bit fields in the same way with the masks cc and 33.

namespace tmac::avx2 {
namespace {

TMAC_ALWAYS_INLINE __m256i load_bytes(const uint8_t* bytes) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
}
TMAC_ALWAYS_INLINE __m256i bytes_of(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
TMAC_ALWAYS_INLINE __m256i masked(__m256i bytes, int mask) { return _mm256_and_si256(bytes, bytes_of(mask)); }

struct Pair {
    __m256i even;
    __m256i odd;
};

/// Both selections of the drawing above from one difference: where a and b >> 1 differ under 55, odd takes the second
/// and even the first.
TMAC_ALWAYS_INLINE Pair join_planes(__m256i high, __m256i low) {
    const __m256i differ = masked(_mm256_xor_si256(high, _mm256_srli_epi16(low, 1)), 0x55);
    return {_mm256_xor_si256(low, _mm256_add_epi8(differ, differ)), _mm256_xor_si256(high, differ)};
}

TMAC_ALWAYS_INLINE Pair join_pairs(__m256i high, __m256i low) {
    const __m256i differ = masked(_mm256_xor_si256(high, _mm256_srli_epi16(low, 2)), 0x33);
    return {_mm256_xor_si256(low, _mm256_slli_epi16(differ, 2)), _mm256_xor_si256(high, differ)};
}

/// Bit j of a byte of every plane, as 4-bit fields: `by_bit[j]` holds bits j and j + 4. Bits beside a code narrower
/// than its field are some other column's.
template <int Bits>
struct Fields {
    static constexpr int kCount = Bits == 1 ? 1 : Bits == 2 ? 2 : 4;
    static constexpr int kWidth = kCount;  ///< in bits

    __m256i by_bit[kCount];

    TMAC_ALWAYS_INLINE explicit Fields(const __m256i (&planes)[Bits]) {
        if constexpr (Bits == 1) {
            by_bit[0] = planes[0];
        } else {
            const Pair bits10 = join_planes(planes[Bits - 2], planes[Bits - 1]);
            if constexpr (Bits == 2) {
                by_bit[0] = bits10.even;
                by_bit[1] = bits10.odd;
            } else {
                const Pair bits32 = top_pair(planes);
                const Pair even = join_pairs(bits32.even, bits10.even);
                const Pair odd = join_pairs(bits32.odd, bits10.odd);
                by_bit[0] = even.even;
                by_bit[1] = odd.even;
                by_bit[2] = even.odd;
                by_bit[3] = odd.odd;
            }
        }
    }

    static TMAC_ALWAYS_INLINE Pair top_pair(const __m256i (&planes)[Bits]) {
        if constexpr (Bits == 3) {
            return {planes[0], _mm256_srli_epi16(planes[0], 1)};
        } else {
            return join_planes(planes[0], planes[1]);
        }
    }

    /// Codes whose bits stand at bit V of the planes' bytes.
    template <int V>
    TMAC_ALWAYS_INLINE __m256i code() const {
        constexpr int kUp = V / kCount * kWidth;
        const __m256i field = by_bit[V % kCount];
        return masked(kUp == 0 ? field : _mm256_srli_epi16(field, kUp), (1 << Bits) - 1);
    }
};

/// Planes of 1 to 4 bits in Layout::quads: bit j of byte 4r + i is, for j < 4, column 4i + j of row r, otherwise column
/// 16 + 4i + (j - 4). So the bits j of a row's four bytes are four columns; activations are stored in that order.
template <class Dot, int Bits>
struct Quads {
    static constexpr int kVectors = 8;  ///< of four columns, in a chunk
    static constexpr int kColumns = 32;
    static constexpr int kChunkBytes = 128;  ///< from one chunk of a tile to the next
    static constexpr int kTileRows = 32;
    static constexpr int kTogether = 1;      ///< vectors of rows that come out of the same bytes
    static constexpr bool kShifted = false;  ///< codes of fewer bits are shifted up to 8
    static constexpr bool kInTwos = false;   ///< code vectors are multiplied two at a time, with sums of int32
    static constexpr int kDigits = 1;
    static constexpr int kLargest = (1 << Bits) - 1;
    static constexpr int kLargestSmall = Bits == 1 ? 16 : 4;  ///< tokens up to which a panel does not pay

    Fields<Bits> fields;

    static TMAC_ALWAYS_INLINE Fields<Bits> load(const uint8_t* codes, const Regions& regions) {
        __m256i planes[Bits];
        TMAC_UNROLL
        for (int plane = 0; plane < Bits; ++plane) {
            planes[plane] = load_bytes(regions.in(codes, plane));
        }
        return Fields<Bits>(planes);
    }

    TMAC_ALWAYS_INLINE Quads(const uint8_t* codes, const Regions& regions) : fields(load(codes, regions)) {}

    template <int V, int Digit>
    TMAC_ALWAYS_INLINE __m256i code() const {
        return fields.template code<V>();
    }
};

/// Codes of 4 bits, or of 7 and 8 bits shifted up to 8, in Layout::nibbles: 8 columns of 16 rows in 64 bytes of each
/// region, 8 of the rows in 32. Byte 4r + i has half of the code of column i in its low nibble and of column 4 + i in
/// its high nibble.
template <class Dot, int Bits>
struct Nibbles {
    static constexpr int kVectors = 2;
    static constexpr int kColumns = 8;
    static constexpr int kChunkBytes = 64;
    static constexpr int kTileRows = 16;
    static constexpr int kTogether = 1;  ///< vectors of rows that come out of the same bytes
    static constexpr bool kInTwos = false;
    static constexpr int kRegions = Bits > 4 ? 2 : 1;
    static constexpr bool kJoined = Bits > 4 && Dot::kWholeBytes;
    static constexpr bool kShifted = Bits > 4;              ///< codes of fewer bits are shifted up to 8
    static constexpr int kDigits = kJoined ? 1 : kRegions;  ///< most significant first, 4 bits each
    static constexpr int kLargest = kJoined ? 255 : 15;
    static constexpr int kLargestSmall = Bits > 4 ? 4 : 16;  ///< tokens up to which a panel does not pay

    __m256i first[kDigits];
    __m256i second[kDigits];

    TMAC_ALWAYS_INLINE Nibbles(const uint8_t* codes, const Regions& regions) {
        const __m256i top = load_bytes(codes);
        if constexpr (kJoined) {
            const __m256i low = load_bytes(regions.in(codes, 1));
            first[0] = _mm256_or_si256(_mm256_slli_epi16(masked(top, 0x0f), 4), masked(low, 0x0f));
            second[0] = _mm256_or_si256(masked(top, 0xf0), masked(_mm256_srli_epi16(low, 4), 0x0f));
        } else {
            split(top, 0);
            if constexpr (kDigits == 2) {
                split(load_bytes(regions.in(codes, 1)), 1);
            }
        }
    }

    TMAC_ALWAYS_INLINE void split(__m256i bytes, int digit) {
        first[digit] = masked(bytes, 0x0f);
        second[digit] = masked(_mm256_srli_epi16(bytes, 4), 0x0f);
    }

    template <int V, int Digit>
    TMAC_ALWAYS_INLINE __m256i code() const {
        return V == 0 ? first[Digit] : second[Digit];
    }
};

/// `bytes` with the `Width` bits from `At` on moved to bit `To`, and nothing else.
template <int At, int Width, int To>
TMAC_ALWAYS_INLINE __m256i cut(__m256i bytes) {
    const int mask = ((1 << Width) - 1) << To;
    if constexpr (At < To) {
        return masked(_mm256_slli_epi16(bytes, To - At), mask);
    }
    return masked(At > To ? _mm256_srli_epi16(bytes, At - To) : bytes, mask);
}

/// Codes of 5 and 6 bits in Layout::nibbles. The top halves lie as above, in one 32 bytes after the other. Of the rest
/// as many columns lie in 32 bytes as there is room for: byte 4r + i has column 4V + i from its bit V * kRest on.
template <int Bits>
struct NarrowNibbles {
    static constexpr int kRest = rest_of_nibbles(Bits);
    static constexpr int kTops = 4 / kRest;  ///< vectors of the first region
    static constexpr int kVectors = 2 * kTops;
    static constexpr int kColumns = 4 * kVectors;
    static constexpr int kLastBytes = 64;
    static constexpr int kChunkBytes = kTops * kLastBytes;
    static constexpr int kTileRows = 16;
    static constexpr int kTogether = 1;
    static constexpr int kRegions = 2;
    static constexpr bool kInTwos = true;
    static constexpr bool kShifted = false;
    static constexpr int kDigits = 1;
    static constexpr int kLargest = (1 << Bits) - 1;
    static constexpr int kLargestSmall = 4;  ///< tokens up to which a panel does not pay

    __m256i top[kTops];
    __m256i rest;

    TMAC_ALWAYS_INLINE NarrowNibbles(const uint8_t* codes, const Regions& regions)
        : rest(load_bytes(in_region<NarrowNibbles>(codes, regions, 1))) {
        TMAC_UNROLL
        for (int i = 0; i < kTops; ++i) {
            top[i] = load_bytes(codes + i * kLastBytes);
        }
    }

    template <int V, int Digit>
    TMAC_ALWAYS_INLINE __m256i code() const {
        return _mm256_or_si256(cut<V % 2 * 4, 4, kRest>(top[V / 2]), cut<V * kRest, kRest, 0>(rest));
    }
};

/// Codes of 2 or 3 bits in Layout::crumbs, 16 columns of 8 rows in 32 bytes: byte 4r + i has the top two bits of column
/// 4V + i from bit 2V on. A third one lies in the second region, where the rows r and 16 + r share a byte's nibbles.
template <int Bits>
struct Crumbs {
    static constexpr int kVectors = 4;
    static constexpr int kColumns = 16;
    static constexpr int kTileRows = 32;
    static constexpr int kChunkBytes = 128;
    static constexpr int kLastBytes = Bits == 3 ? 64 : kChunkBytes;
    static constexpr int kTogether = 1;
    static constexpr int kRegions = Bits - 1;
    static constexpr bool kInTwos = false;
    static constexpr bool kShifted = false;
    static constexpr int kDigits = 1;
    static constexpr int kLargest = (1 << Bits) - 1;
    static constexpr int kLargestSmall = 4;  ///< tokens up to which a panel does not pay

    __m256i top;
    __m256i third;

    TMAC_ALWAYS_INLINE Crumbs(const uint8_t* codes, const Regions& regions) : top(load_bytes(codes)) {
        if constexpr (Bits == 3) {
            const auto half = static_cast<int>((codes - regions.first) / 64 % 2);
            const __m256i both = load_bytes(in_region<Crumbs>(codes, regions, 1) - half * 64);
            third = _mm256_srl_epi16(both, _mm_cvtsi32_si128(half * 4));
        }
    }

    template <int V, int Digit>
    TMAC_ALWAYS_INLINE __m256i code() const {
        if constexpr (Bits == 2) {
            return cut<2 * V, 2, 0>(top);
        } else {
            return _mm256_or_si256(cut<2 * V, 2, 1>(top), cut<V, 1, 0>(third));
        }
    }
};

/// Planes of 1 to 4 bits in Layout::rows, 8 columns of 32 rows in 32 bytes: a byte is a row. Unpacking the bytes of
/// four columns puts a row's side by side; the four results are then what Nibbles has, for 8 rows each. For prompts
/// only.
template <class Dot, int Bits>
struct Rows {
    static constexpr int kVectors = 2;
    static constexpr int kColumns = 8;
    static constexpr int kChunkBytes = 64;  ///< of 64 rows, half of which are taken at a time
    static constexpr int kTileRows = 64;
    static constexpr int kTogether = 4;      ///< vectors of rows that come out of the same bytes
    static constexpr bool kShifted = false;  ///< codes of fewer bits are shifted up to 8
    static constexpr bool kInTwos = false;
    static constexpr int kDigits = 1;
    static constexpr int kLargest = (1 << Bits) - 1;

    __m256i rows[4];  ///< of 8 rows each

    TMAC_ALWAYS_INLINE Rows(const uint8_t* codes, const Regions& regions) {
        // Rows 8q + 4 lane + i, which stand in bytes 2i of a lane's half (layout/tiles.cpp), put side by side: unpacked
        // twice they are one result.
        const __m256i order = _mm256_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15,  //
                                               0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
        __m256i planes[Bits];
        TMAC_UNROLL
        for (int plane = 0; plane < Bits; ++plane) {
            planes[plane] = _mm256_shuffle_epi8(load_bytes(regions.in(codes, plane)), order);
        }
        const Fields<Bits> fields(planes);
        __m256i column[4];
        TMAC_UNROLL
        for (int i = 0; i < 4; ++i) {
            // Fields of less than four bits: two or four columns share a register.
            const int up = i / Fields<Bits>::kCount * Fields<Bits>::kWidth;
            const __m256i field = fields.by_bit[i % Fields<Bits>::kCount];
            column[i] = up == 0 ? field : _mm256_srli_epi16(field, up);
        }
        const __m256i low01 = _mm256_unpacklo_epi8(column[0], column[1]);
        const __m256i high01 = _mm256_unpackhi_epi8(column[0], column[1]);
        const __m256i low23 = _mm256_unpacklo_epi8(column[2], column[3]);
        const __m256i high23 = _mm256_unpackhi_epi8(column[2], column[3]);
        rows[0] = _mm256_unpacklo_epi16(low01, low23);
        rows[1] = _mm256_unpackhi_epi16(low01, low23);
        rows[2] = _mm256_unpacklo_epi16(high01, high23);
        rows[3] = _mm256_unpackhi_epi16(high01, high23);
    }

    /// Columns 4V.. of 8 rows.
    template <int V>
    TMAC_ALWAYS_INLINE __m256i code(int vector) const {
        return masked(V == 0 ? rows[vector] : _mm256_srli_epi16(rows[vector], 4), (1 << Bits) - 1);
    }
};

template <class Codes>
inline constexpr bool kInBands = false;
template <class Dot, int Bits>
inline constexpr bool kInBands<Rows<Dot, Bits>> = true;

/// First chunk of an act group of 8 rows; of 32 rows in bands, `row` being their first.
template <class Codes>
TMAC_ALWAYS_INLINE const uint8_t* codes_of_group(const QgemmArgs& args, int64_t row, const ActGroup& group) {
    if constexpr (kInBands<Codes>) {
        return args.codes + BandPlace(args.n, row).codes(args.padded_k, group) + row % Codes::kTileRows;
    }
    return codes_in_tiles<Codes>(args, row) + int64_t{group.padded_begin} / Codes::kColumns * Codes::kChunkBytes;
}

/// Where the group values of 8 rows lie in the layout's order.
template <class Codes>
TMAC_ALWAYS_INLINE GroupPlace values_of_rows(const QgemmArgs& args, int64_t row, const ActGroup& group) {
    if constexpr (kInBands<Codes>) {
        return place_in_band(args, BandPlace(args.n, row), group);
    }
    return values_in_tiles<Codes>(args, row, group);
}

TMAC_ALWAYS_INLINE __m256i broadcast_four(const int8_t* q) {
    int32_t word = 0;
    std::memcpy(&word, q, sizeof(word));
    return _mm256_set1_epi32(word);
}

constexpr int kTokenBlock = 4;  ///< tokens whose sums, for 16 rows, leave room for the codes in 16 registers

/// What the kernels of int8 activations serve.
constexpr uint8_t kBoth = (1U << static_cast<int>(Activation::group)) | (1U << static_cast<int>(Activation::token));

/// How a code's sum is counted.
struct Centre {
    int32_t code;   ///< mad_centre()
    int32_t shift;  ///< codes are multiplied shifted up by this
};

template <class Codes>
TMAC_ALWAYS_INLINE Centre centre_of(const QgemmArgs& args) {
    return {mad_centre(*args.spec), Codes::kShifted ? 8 - args.spec->bits : 0};
}

/// What an act group's sum of codes counts too much.
TMAC_ALWAYS_INLINE __m256i start_of_count(const Centre& centre, int32_t act_isum) {
    return _mm256_set1_epi32(centre.code * act_isum);
}

/// The sum of an act group: digits weighed, and counted from the centre.
template <class Codes>
TMAC_ALWAYS_INLINE __m256i total_of(const __m256i* digits, const Centre& centre, __m256i from) {
    __m256i sum = digits[0];
    if constexpr (Codes::kDigits == 2) {
        sum = _mm256_add_epi32(_mm256_slli_epi32(digits[0], 4), digits[1]);
    }
    if constexpr (Codes::kShifted) {
        sum = _mm256_sra_epi32(sum, _mm_cvtsi32_si128(centre.shift));
    }
    return _mm256_sub_epi32(sum, from);
}

}  // namespace
}  // namespace tmac::avx2
