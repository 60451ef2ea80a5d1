#pragma once

#include <utility>

#include "kernels/avx512/simd.h"

// Codes of the class `mad` as bytes for vpdpbusd: a vector holds 16 rows, in each row's four bytes four columns.
//
// A chunk of Layout::wide_quads has, for each plane, 32 columns of 16 rows in 64 bytes. Bit j of byte 4r + i is, for j
// < 4, column 4i + j of row r, otherwise column 16 + 4i + (j - 4). So the bits j of a row's four bytes are four
// columns, and a code vector V takes the bits V of every plane. `act_quant` stores activations in that order.
//
// Planes become codes by halving steps, each joining two registers in two instructions, never by single bits:
//
//   planes a b         2-bit fields                        bits of a byte
//   even = (a << 1 & aa) | (b & 55)                        a6b6 a4b4 a2b2 a0b0
//   odd  = (a & aa) | (b >> 1 & 55)                        a7b7 a5b5 a3b3 a1b1
//
// and two such pairs become 4-bit fields in the same way with the masks cc and 33.

namespace tmac::avx512 {
namespace {

TMAC_ALWAYS_INLINE __m512i load_bytes(const uint8_t* bytes) { return _mm512_loadu_si512(bytes); }
TMAC_ALWAYS_INLINE __m512i bytes_of(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }

/// Where a bit of `mask` is set that of `a`, elsewhere that of `b`. The register of `a`, not the mask's, is
/// overwritten.
TMAC_ALWAYS_INLINE __m512i select(int mask, __m512i a, __m512i b) {
    return _mm512_ternarylogic_epi32(a, b, bytes_of(mask), 0xe4);
}

struct Pair {
    __m512i even;
    __m512i odd;
};

TMAC_ALWAYS_INLINE Pair join_planes(__m512i high, __m512i low) {
    return {select(0xaa, _mm512_add_epi8(high, high), low), select(0xaa, high, _mm512_srli_epi16(low, 1))};
}

TMAC_ALWAYS_INLINE Pair join_pairs(__m512i high, __m512i low) {
    return {select(0xcc, _mm512_slli_epi16(high, 2), low), select(0xcc, high, _mm512_srli_epi16(low, 2))};
}

/// Planes of 1 to 4 bits in Layout::wide_quads.
template <int Bits>
struct Quads {
    static constexpr int kVectors = 8;
    static constexpr int kColumns = 32;
    static constexpr int kChunkBytes = 256;  ///< from one chunk of a tile to the next
    static constexpr int kLastBytes = kChunkBytes;
    static constexpr int kTileRows = 64;
    static constexpr int kRegions = Bits;
    /// At most so many are as fast as memory: what the CPU prefetches will do.
    static constexpr int kStreamedTokens = 2;
    static constexpr int kShift = 0;  ///< a code vector holds codes << kShift
    static constexpr bool kRowsInTurn = false;
    static constexpr int kFields = Bits == 1 ? 1 : Bits == 2 ? 2 : 4;
    static constexpr int kFieldBits = 8 / (kVectors / kFields);  ///< 1, 2 or 4

    __m512i fields[kFields];

    TMAC_ALWAYS_INLINE Quads(const uint8_t* codes, const Regions& regions) {
        if constexpr (Bits == 1) {
            fields[0] = load_bytes(codes);
        } else {
            const __m512i low = load_bytes(regions.in(codes, Bits - 1));
            const Pair bits10 = join_planes(load_bytes(regions.in(codes, Bits - 2)), low);
            if constexpr (Bits == 2) {
                fields[0] = bits10.even;
                fields[1] = bits10.odd;
            } else {
                Pair bits32;
                if constexpr (Bits == 3) {
                    const __m512i top = load_bytes(codes);
                    bits32 = {top, _mm512_srli_epi16(top, 1)};  // other columns' bits beside them are masked away below
                } else {
                    bits32 = join_planes(load_bytes(codes), load_bytes(regions.in(codes, 1)));
                }
                const Pair even = join_pairs(bits32.even, bits10.even);
                const Pair odd = join_pairs(bits32.odd, bits10.odd);
                fields[0] = even.even;
                fields[1] = odd.even;
                fields[2] = even.odd;
                fields[3] = odd.odd;
            }
        }
    }

    /// Codes of vector V, in the low bits of each byte.
    template <int V>
    TMAC_ALWAYS_INLINE __m512i code() const {
        constexpr int kUp = V / kFields * kFieldBits;
        const __m512i field = fields[V % kFields];
        return _mm512_and_si512(kUp == 0 ? field : _mm512_srli_epi16(field, kUp), bytes_of((1 << Bits) - 1));
    }

    /// The same where they stand: codes << kScale<V>.
    template <int V>
    static constexpr int kScale = V / kFields * kFieldBits;
    template <int V>
    TMAC_ALWAYS_INLINE __m512i scaled() const {
        return _mm512_and_si512(fields[V % kFields], bytes_of(((1 << Bits) - 1) << kScale<V>));
    }
    static constexpr int kScales = kVectors / kFields;  ///< distinct ones
};

/// `bytes` with bit `At` of every byte, and those beside it, moved to bit `To`. Bits come over from other bytes.
template <int At, int To>
TMAC_ALWAYS_INLINE __m512i moved(__m512i bytes) {
    if constexpr (At < To) {
        return _mm512_slli_epi16(bytes, To - At);
    }
    return At > To ? _mm512_srli_epi16(bytes, At - To) : bytes;
}

/// Codes of 4 to 8 bits in Layout::wide_nibbles. In the first region 8 columns of 16 rows lie in 64 bytes: byte 4r + i
/// has the top half of the code of column i in its low nibble and of column 4 + i in its high nibble. Of the rest as
/// many columns lie in 64 bytes as there is room for: byte 4r + i has column 4V + i from its bit V * kRest on.
///
/// A byte of a code vector is the top half over the rest, shifted up to 8 bits. The other fields of a byte of the rest
/// are masked away but for one, which lands in the other nibble:
///
///     6 bits     dd cc bb aa & 33 = 00 cc 00 aa     << 2 for aa, >> 2 for cc
///                            & cc = dd 00 bb 00     as it is for bb, >> 4 for dd
template <int Bits>
struct Nibbles {
    static constexpr int kRest = Bits > 4 ? rest_of_nibbles(Bits) : 0;
    static constexpr int kTops = Bits > 4 ? 4 / kRest : 1;  ///< registers of the first region
    static constexpr int kVectors = 2 * kTops;
    static constexpr int kColumns = 4 * kVectors;
    static constexpr int kTileRows = 32;
    static constexpr int kLastBytes = 128;
    static constexpr int kChunkBytes = kTops * kLastBytes;
    static constexpr int kRegions = Bits > 4 ? 2 : 1;
    static constexpr int kStreamedTokens = 2 * kRegions;
    static constexpr int kShift = Bits > 4 ? 8 - Bits : 0;
    static constexpr bool kRowsInTurn = false;

    const uint8_t* tops;  ///< loaded when they are wanted: in the order of memory, also of several rows
    __m512i rest;

    TMAC_ALWAYS_INLINE Nibbles(const uint8_t* codes, const Regions& regions) : tops(codes) {
        if constexpr (Bits > 4) {
            const uint8_t* place = in_region<Nibbles>(codes, regions, 1);
            rest = load_bytes(place);
            if constexpr (Bits == 5) {  // two lines after eight of the other stream: the CPU comes late (0.83 to 0.87)
                TMAC_PREFETCH(place + 256);
            }
        }
    }

    template <int V>
    TMAC_ALWAYS_INLINE __m512i top() const {
        return load_bytes(tops + V / 2 * kLastBytes);
    }

    template <int V>
    TMAC_ALWAYS_INLINE __m512i code() const {
        constexpr int kUp = V % 2 * 4;  // of the top half
        if constexpr (Bits == 4) {
            return _mm512_and_si512(moved<kUp, 0>(top<V>()), bytes_of(0x0f));
        } else {
            constexpr int kAt = V * kRest;
            constexpr int kFields = ((1 << kRest) - 1) * 0x11 << kAt % 4;
            const __m512i fields = kRest == 4 ? rest : _mm512_and_si512(rest, bytes_of(kFields));
            return select(0xf0, moved<kUp, 4>(top<V>()), moved<kAt, 4 - kRest>(fields));
        }
    }
    template <int V>
    static constexpr int kScale = Bits > 4 ? 0 : 4 * V;
    template <int V>
    TMAC_ALWAYS_INLINE __m512i scaled() const {
        return Bits > 4 ? code<V>() : _mm512_and_si512(top<V>(), bytes_of(0x0f << kScale<V>));
    }
    static constexpr int kScales = Bits > 4 ? 1 : 2;
};

/// Codes of 2 or 3 bits in Layout::crumbs, 16 columns of 16 rows in 64 bytes: byte 4r + i has the top two bits of
/// column 4V + i from bit 2V on. A third one lies in the second region, where the rows r and 16 + r share a byte's
/// nibbles.
template <int Bits>
struct Crumbs {
    static constexpr int kVectors = 4;
    static constexpr int kColumns = 16;
    static constexpr int kTileRows = 32;
    static constexpr int kChunkBytes = 128;
    static constexpr int kLastBytes = Bits == 3 ? 64 : kChunkBytes;
    static constexpr int kRegions = Bits - 1;
    static constexpr int kStreamedTokens = 2;
    static constexpr int kShift = 0;
    static constexpr bool kRowsInTurn = false;

    __m512i top;
    __m512i third;

    TMAC_ALWAYS_INLINE Crumbs(const uint8_t* codes, const Regions& regions) : top(load_bytes(codes)) {
        if constexpr (Bits == 3) {
            const auto half = static_cast<int>((codes - regions.first) / 64 % 2);
            const __m512i both = load_bytes(in_region<Crumbs>(codes, regions, 1) - half * 64);
            third = _mm512_srl_epi16(both, _mm_cvtsi32_si128(half * 4));
        }
    }

    template <int V>
    TMAC_ALWAYS_INLINE __m512i code() const {
        if constexpr (Bits == 2) {
            return _mm512_and_si512(moved<2 * V, 0>(top), bytes_of(3));
        } else {
            return _mm512_and_si512(select(6, moved<2 * V, 1>(top), moved<V, 0>(third)), bytes_of(7));
        }
    }

    template <int V>
    static constexpr int kScale = Bits == 2 ? 2 * V : 0;
    template <int V>
    TMAC_ALWAYS_INLINE __m512i scaled() const {
        return Bits == 2 ? _mm512_and_si512(top, bytes_of(3 << kScale<V>)) : code<V>();
    }
    static constexpr int kScales = Bits == 2 ? 4 : 1;
};

/// Planes of 1 to 4 bits in Layout::bands, for prompts of a weight that look-ups decode.
template <int Bits>
struct BandQuads : Quads<Bits> {
    using Quads<Bits>::Quads;
};

template <class Codes>
inline constexpr bool kInBands = false;
template <int Bits>
inline constexpr bool kInBands<BandQuads<Bits>> = true;

/// First chunk of an act group of 16 rows, `row` being a multiple of 16.
template <class Codes>
TMAC_ALWAYS_INLINE const uint8_t* codes_of_group(const QgemmArgs& args, int64_t row, const ActGroup& group) {
    if constexpr (kInBands<Codes>) {
        return args.codes + BandPlace(args.n, row).codes(args.padded_k, group) + row % Codes::kTileRows * 4;
    }
    return codes_in_tiles<Codes>(args, row) + int64_t{group.padded_begin} / Codes::kColumns * Codes::kChunkBytes;
}

/// Where the group values of 16 rows lie in the layout's order.
template <class Codes>
TMAC_ALWAYS_INLINE GroupPlace values_of_rows(const QgemmArgs& args, int64_t row, const ActGroup& group) {
    if constexpr (kInBands<Codes>) {
        return place_in_band(args, BandPlace(args.n, row), group);
    }
    return values_in_tiles<Codes>(args, row, group);
}

TMAC_ALWAYS_INLINE __m512i broadcast_four(const int8_t* q) {
    int32_t word = 0;
    std::memcpy(&word, q, sizeof(word));
    return _mm512_set1_epi32(word);
}

constexpr int kTokenBlock = 8;  ///< tokens whose sums, for 32 rows, leave room for the codes in 32 registers

/// Where the integer sum of one act group of one token starts, whose activations add up to `act_isum`: it counts codes
/// from `centre`, see mad_centre().
template <class Codes>
TMAC_ALWAYS_INLINE __m512i start_of_sum(int32_t centre, int32_t act_isum) {
    return _mm512_set1_epi32(-(centre << Codes::kShift) * act_isum);
}

}  // namespace
}  // namespace tmac::avx512
