#pragma once

#include <utility>

#include "kernels/neon/simd.h"

// Codes of the class `mad` as signed bytes: a vector holds 4 rows, in each row's four bytes four columns.
//
// 16 bytes of Layout::quads hold 32 columns of 4 rows of one plane. Bit j of byte 4r + i is, for j < 4, column 4i + j
// of row r, otherwise column 16 + 4i + (j - 4). So the bits j of a row's four bytes are four columns, and code vector V
// takes the bits V of every plane. Activations are stored in that order: column 4i + j of sixteen at byte 4j + i.
//
// Planes become codes by halving steps, each joining two registers in two instructions, never by single bits:
//
//   planes a b         2-bit fields                        bits of a byte
//   even = (a << 1 & aa) | (b & 55)                        a6b6 a4b4 a2b2 a0b0
//   odd  = (a & aa) | (b >> 1 & 55)                        a7b7 a5b5 a3b3 a1b1
//
// and two such pairs become 4-bit fields in the same way with the masks cc and 33.
//
// A vector's bytes s stand for codes: code - 2^(bits-1) = kSign * (s >> kShift) - kOffset, where kOffset = 0 if s
// counts from there already. With the sum of the activations the offset costs one instruction per act group.

namespace tmac::neon {
namespace {

TMAC_ALWAYS_INLINE uint8x16_t mask_of(int bits) { return vdupq_n_u8(static_cast<uint8_t>(bits)); }

struct Fields {
    uint8x16_t even;
    uint8x16_t odd;
};

TMAC_ALWAYS_INLINE Fields join_planes(uint8x16_t high, uint8x16_t low) {
    const uint8x16_t mask = mask_of(0xaa);
    return {vbslq_u8(mask, vaddq_u8(high, high), low), vbslq_u8(mask, high, vshrq_n_u8(low, 1))};
}

TMAC_ALWAYS_INLINE Fields join_fields(uint8x16_t high, uint8x16_t low) {
    const uint8x16_t mask = mask_of(0xcc);
    return {vbslq_u8(mask, vshlq_n_u8(high, 2), low), vbslq_u8(mask, high, vshrq_n_u8(low, 2))};
}

/// Planes of 1 to 4 bits in Layout::quads.
template <int Bits>
struct Quads {
    static constexpr int kBits = Bits;
    static constexpr int kVectors = 8;
    static constexpr int kColumns = 32;
    static constexpr int kChunkBytes = 128;  ///< from one chunk of a tile to the next
    static constexpr int kLastBytes = kChunkBytes;
    static constexpr int kTileRows = 32;
    static constexpr int kRegions = Bits;
    static constexpr int kSign = Bits == 1 ? -1 : 1;  ///< testing a bit gives 0 or -1
    static constexpr int kShift = 0;
    static constexpr int kOffset = 1 << (Bits - 1);
    static constexpr bool kSmall = true;  ///< eight products fit into int16
    static constexpr bool kUnsigned = false;
    static constexpr int kFields = Bits == 1 ? 1 : Bits == 2 ? 2 : 4;
    static constexpr int kFieldBits = kFields;
    static constexpr int kPlaces = kVectors / kFields;  ///< of a field in a byte

    uint8x16_t fields[kFields];

    TMAC_ALWAYS_INLINE Quads(const uint8_t* codes, const Regions& regions) {
        if constexpr (Bits == 1) {
            fields[0] = vld1q_u8(codes);
        } else {
            const uint8x16_t low = vld1q_u8(regions.in(codes, Bits - 1));
            const Fields bits10 = join_planes(vld1q_u8(regions.in(codes, Bits - 2)), low);
            if constexpr (Bits == 2) {
                fields[0] = bits10.even;
                fields[1] = bits10.odd;
            } else {
                Fields bits32;
                const uint8x16_t top = vld1q_u8(codes);
                if constexpr (Bits == 3) {
                    bits32 = {top, vshrq_n_u8(top, 1)};  // other columns' bits beside them are masked away below
                } else {
                    bits32 = join_planes(top, vld1q_u8(regions.in(codes, 1)));
                }
                const Fields even = join_fields(bits32.even, bits10.even);
                const Fields odd = join_fields(bits32.odd, bits10.odd);
                fields[0] = even.even;
                fields[1] = odd.even;
                fields[2] = even.odd;
                fields[3] = odd.odd;
            }
        }
    }

    /// Vector V. A field at the top of its byte is shifted down, one at the bottom is masked.
    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t code() const {
        constexpr int kUp = V / kFields * kFieldBits;
        const uint8x16_t field = fields[V % kFields];
        if constexpr (Bits == 1) {
            return vreinterpretq_s8_u8(vtstq_u8(field, mask_of(1 << V)));
        } else if constexpr (kUp == 0) {
            return vreinterpretq_s8_u8(vandq_u8(field, mask_of((1 << Bits) - 1)));
        } else if constexpr (kUp == 8 - Bits) {
            return vreinterpretq_s8_u8(vshrq_n_u8(field, kUp));
        } else {
            return vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(field, kUp), mask_of((1 << Bits) - 1)));
        }
    }

    /// Vector V left where it stands, code() << kScale<V>, where that saves the shift.
    static constexpr bool kScaled = true;
    template <int V>
    static constexpr int kScale = Bits == 1 || V / kFields * kFieldBits == 8 - Bits ? 0 : V / kFields * kFieldBits;
    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t scaled() const {
        if constexpr (kScale<V> == 0) {
            return code<V>();
        } else {
            return vreinterpretq_s8_u8(vandq_u8(fields[V % kFields], mask_of(((1 << Bits) - 1) << kScale<V>)));
        }
    }
};

/// `bytes` with bit `At` of every byte, and those beside it, moved to bit `To`.
template <int At, int To>
TMAC_ALWAYS_INLINE uint8x16_t moved(uint8x16_t bytes) {
    if constexpr (At < To) {
        return vshlq_n_u8(bytes, To - At);
    } else if constexpr (At > To) {
        return vshrq_n_u8(bytes, At - To);
    } else {
        return bytes;
    }
}

/// Codes of 4 to 8 bits in Layout::nibbles. In the first region 8 columns of 4 rows lie in 16 bytes: byte 4r + i has
/// the top half of the code of column i in its low nibble and of column 4 + i in its high nibble. Of the rest as many
/// columns lie in 16 bytes as there is room for: byte 4r + i has column 4V + i from its bit V * kRest on.
///
/// A byte of a code vector is the top half over the rest, shifted up to 8 bits: one is inserted beside the other.
template <int Bits, bool Unsigned = false>
struct Nibbles {
    static constexpr int kBits = Bits;
    static constexpr int kRest = Bits > 4 ? rest_of_nibbles(Bits) : 4;
    static constexpr int kTops = 4 / kRest;  ///< registers of the first region
    static constexpr int kVectors = 2 * kTops;
    static constexpr int kColumns = 4 * kVectors;
    static constexpr int kLastBytes = 64;
    static constexpr int kChunkBytes = kTops * kLastBytes;
    static constexpr int kTileRows = 16;
    static constexpr int kRegions = Bits > 4 ? 2 : 1;
    static constexpr int kSign = 1;
    static constexpr int kShift = Bits > 4 ? 8 - Bits : 0;
    static constexpr bool kSmall = Bits == 4;
    static constexpr bool kUnsigned = Unsigned && Bits > 4;  ///< bytes are code << kShift, for usdot
    static constexpr int kOffset = kUnsigned || Bits == 4 ? 1 << (Bits - 1) : 0;

    int8x16_t vectors[kVectors];

    TMAC_ALWAYS_INLINE Nibbles(const uint8_t* codes, const Regions& regions) {
        const auto every_top = [&]<int... Top>(std::integer_sequence<int, Top...>) {
            if constexpr (Bits == 4) {
                const uint8x16_t top = vld1q_u8(codes);
                vectors[0] = vreinterpretq_s8_u8(vandq_u8(top, mask_of(0x0f)));
                vectors[1] = vreinterpretq_s8_u8(vshrq_n_u8(top, 4));
            } else if constexpr (kRest == 4) {
                // Inserting a shifted nibble overwrites its target, so the rest is loaded twice: a load is cheaper than
                // a copy. The address is hidden from the compiler, which would make a copy of it again.
                const uint8_t* rest = regions.in(codes, 1);
                const uint8x16_t first = vld1q_u8(rest);
#if defined(__GNUC__)
                __asm__("" : "+r"(rest));
#endif
                join<0>(vld1q_u8(codes), first, vld1q_u8(rest));
            } else {
                const uint8x16_t rest = vld1q_u8(in_region<Nibbles>(codes, regions, 1));
                (join<2 * Top>(vld1q_u8(codes + Top * kLastBytes), fields<2 * Top, 4 - kRest>(rest),
                               fields<2 * Top + 1, 8 - kRest>(rest)),
                 ...);
            }
        };
        every_top(std::make_integer_sequence<int, kTops>());
    }

    /// The field of vector V from bit `To` on, beside it zeros in the same nibble.
    template <int V, int To>
    static TMAC_ALWAYS_INLINE uint8x16_t fields(uint8x16_t rest) {
        constexpr int kAt = V * kRest;
        return moved<kAt, To>(vandq_u8(rest, mask_of(((1 << kRest) - 1) * 0x11 << kAt % 4)));
    }

    /// `low` has the rest of vector V in its low nibble, `high` that of vector V + 1 in its high nibble.
    template <int V>
    TMAC_ALWAYS_INLINE void join(uint8x16_t top, uint8x16_t low, uint8x16_t high) {
        if constexpr (!kUnsigned) {
            top = veorq_u8(top, mask_of(0x88));  // u - 128 as a signed byte
        }
        vectors[V] = vreinterpretq_s8_u8(vsliq_n_u8(low, top, 4));
        vectors[V + 1] = vreinterpretq_s8_u8(vsriq_n_u8(top, high, 4));
    }

    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t code() const {
        return vectors[V];
    }
    static constexpr bool kScaled = false;
    template <int V>
    static constexpr int kScale = 0;
    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t scaled() const {
        return vectors[V];
    }
};

/// Codes of 2 or 3 bits in Layout::crumbs, 16 columns of 4 rows in 16 bytes: byte 4r + i has the top two bits of column
/// 4V + i from bit 2V on. A third one lies in the second region, where the rows r and 16 + r share a byte's nibbles.
template <int Bits>
struct Crumbs {
    static constexpr int kBits = Bits;
    static constexpr int kVectors = 4;
    static constexpr int kColumns = 16;
    static constexpr int kTileRows = 32;
    static constexpr int kChunkBytes = 128;
    static constexpr int kLastBytes = Bits == 3 ? 64 : kChunkBytes;
    static constexpr int kRegions = Bits - 1;
    static constexpr int kSign = 1;
    static constexpr int kShift = 0;
    static constexpr int kOffset = 1 << (Bits - 1);
    static constexpr bool kSmall = true;
    static constexpr bool kUnsigned = false;

    uint8x16_t top;
    uint8x16_t third;

    TMAC_ALWAYS_INLINE Crumbs(const uint8_t* codes, const Regions& regions) : top(vld1q_u8(codes)) {
        if constexpr (Bits == 3) {
            const auto half = static_cast<int8_t>((codes - regions.first) / 64 % 2);
            const uint8x16_t both = vld1q_u8(in_region<Crumbs>(codes, regions, 1) - half * 64);
            third = vshlq_u8(both, vdupq_n_s8(static_cast<int8_t>(-4 * half)));
        }
    }

    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t code() const {
        if constexpr (Bits == 2) {
            return vreinterpretq_s8_u8(vandq_u8(moved<2 * V, 0>(top), mask_of(3)));
        } else {
            const uint8x16_t low = vandq_u8(moved<V, 0>(third), mask_of(1));
            return vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8(low, moved<2 * V, 0>(top), 1), mask_of(7)));
        }
    }
    static constexpr bool kScaled = false;
    template <int V>
    static constexpr int kScale = 0;
    template <int V>
    TMAC_ALWAYS_INLINE int8x16_t scaled() const {
        return code<V>();
    }
};

inline constexpr int kStripVectors = 4;
inline constexpr int kStripRows = kStripVectors * kLanes;  ///< rows that are multiplied together

TMAC_ALWAYS_INLINE int8x16_t repeat_four(const int8_t* q) {
    int32_t word = 0;
    std::memcpy(&word, q, sizeof(word));
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

/// Where the sum of an act group starts, so that kSign * (sum >> kShift) counts codes from mad_centre().
template <class Codes>
TMAC_ALWAYS_INLINE int32_t start_of_sum(const QgemmArgs& args, int64_t group) {
    const int32_t offset = Codes::kOffset + mad_centre(*args.spec) - (1 << (args.spec->bits - 1));
    return -Codes::kSign * offset * (1 << Codes::kShift) * args.act_isum[group];
}

template <class Codes>
TMAC_ALWAYS_INLINE int32x4_t end_of_sum(int32x4_t sum) {
    if constexpr (Codes::kSign < 0) {
        return vnegq_s32(sum);
    } else if constexpr (Codes::kShift > 0) {
        return vshrq_n_s32(sum, Codes::kShift);
    } else {
        return sum;
    }
}

}  // namespace
}  // namespace tmac::neon
