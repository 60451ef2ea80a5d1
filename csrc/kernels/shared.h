#pragma once

#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/kernel.h"

// What the vectorized kernels of every ISA share: docs/numerics.md written once. `V` is an ISA's simd.h type `Floats`:
//
//     using F, I                    registers of floats and of int32, V::kLanes wide
//     set1(float), to_float(I), add(F, F), subtract(F, F), multiply(F, F), multiply_add(F a, F b, F c) = a * b + c,
//     multiply_subtract(F a, F b, F c) = a * b - c
//     load(const float*), widen(const uint16_t*) from f16, widen(const uint8_t*), widen(const int8_t*)
//
// Everything stands in an anonymous namespace: each kernel object has its own copy, made with its own flags, and no
// weak symbol that the linker could hand to another.

namespace tmac {
namespace {

/// Scales, zeros or offsets of neighbouring rows from element `index` on.
template <class V>
TMAC_ALWAYS_INLINE typename V::F load_group_values(const void* values, GroupType type, int64_t index) {
    switch (type) {
        case GroupType::u8:
            return V::widen(static_cast<const uint8_t*>(values) + index);
        case GroupType::f16:
            return V::widen(static_cast<const uint16_t*>(values) + index);
        case GroupType::f32:
            return V::load(static_cast<const float*>(values) + index);
        case GroupType::i8:  // Epilogue::load_two_level
        case GroupType::none:
            break;
    }
    return V::set1(0.0F);
}

/// The group values that one act group needs, and how they enter the result.
template <class V>
struct GroupTerms {
    typename V::F scale;
    typename V::F coefficient;
};

/// Scales of two levels with offsets, or with a zero point that the spec fixes: products of an int8 and an f16, which
/// f32 holds exactly. Everything is copied, so that a loop that stores results knows it not to change.
template <class V, bool Offsets>
struct TwoLevelTerms {
    using F = typename V::F;
    static constexpr bool kHasCoefficient = true;

    const int8_t* scales;
    const int8_t* offsets;
    const uint16_t* super_scales;
    const uint16_t* super_offsets;
    F from;  ///< the centre, less a fixed zero

    TMAC_ALWAYS_INLINE TwoLevelTerms(const QgemmArgs& args, float centre)
        : scales(static_cast<const int8_t*>(args.scales)),
          offsets(static_cast<const int8_t*>(args.zeros)),
          super_scales(args.super_scales),
          super_offsets(args.super_offsets),
          from(Offsets ? V::set1(centre) : V::subtract(V::set1(centre), V::set1(args.spec->fixed_zero))) {}

    TMAC_ALWAYS_INLINE GroupTerms<V> load(const GroupPlace& place) const {
        const F scale = V::multiply(V::widen(super_scales + place.super_value), V::widen(scales + place.value));
        if constexpr (Offsets) {
            const F minimum = V::multiply(V::widen(super_offsets + place.super_value), V::widen(offsets + place.value));
            return {scale, V::multiply_subtract(scale, from, minimum)};
        }
        return {scale, V::multiply(scale, from)};
    }
};

/// What a loop knows of the scales: a branch for each register costs one token's loops of short groups several percent.
enum class Levels : uint8_t { any, one, two };

/// The float epilogue. Holds what does not change from group to group.
template <class V>
struct Epilogue {
    using F = typename V::F;

    const QgemmArgs& args;
    float centre;  ///< what stands for the code that the integer sums count from
    bool has_coefficient;

    TMAC_ALWAYS_INLINE Epilogue(const QgemmArgs& qgemm, float from)
        : args(qgemm),
          centre(qgemm.code_scale * from + qgemm.code_base),
          has_coefficient(qgemm.spec->zero_point != ZeroPoint::fixed || qgemm.spec->fixed_zero != centre) {}

    /// `place`: of the first row.
    template <Levels Known = Levels::any>
    TMAC_ALWAYS_INLINE GroupTerms<V> load(const GroupPlace& place) const {
        if (Known == Levels::two || (Known == Levels::any && args.scale_type == GroupType::i8)) {
            return load_two_level(place);
        }
        const int64_t index = place.value;
        const F scale = load_group_values<V>(args.scales, args.scale_type, index);
        if (!has_coefficient) {
            return {scale, V::set1(0.0F)};
        }
        const F from = V::set1(centre);
        if (args.spec->zero_point == ZeroPoint::offset) {
            return {scale, V::multiply_add(scale, from, load_group_values<V>(args.zeros, args.zero_type, index))};
        }
        const F zero = args.spec->zero_point == ZeroPoint::fixed
                           ? V::set1(args.spec->fixed_zero)
                           : load_group_values<V>(args.zeros, args.zero_type, index);
        return {scale, V::multiply(scale, V::subtract(from, zero))};
    }

    TMAC_ALWAYS_INLINE GroupTerms<V> load_two_level(const GroupPlace& place) const {
        return args.spec->zero_point == ZeroPoint::offset ? TwoLevelTerms<V, true>(args, centre).load(place)
                                                          : TwoLevelTerms<V, false>(args, centre).load(place);
    }

    /// The same where it is known whether there is a coefficient: no branch between the tokens of a block.
    template <bool HasCoefficient>
    static TMAC_ALWAYS_INLINE F add_known(const GroupTerms<V>& terms, typename V::I isum, float act_scale,
                                          float act_sum, F y) {
        y = V::multiply_add(V::to_float(isum), V::multiply(terms.scale, V::set1(act_scale)), y);
        return HasCoefficient ? V::multiply_add(terms.coefficient, V::set1(act_sum), y) : y;
    }

    /// Adds one act group of one token.
    TMAC_ALWAYS_INLINE F add(const GroupTerms<V>& terms, typename V::I isum, float act_scale, float act_sum,
                             F y) const {
        y = V::multiply_add(V::to_float(isum), V::multiply(terms.scale, V::set1(act_scale)), y);
        return has_coefficient ? V::multiply_add(terms.coefficient, V::set1(act_sum), y) : y;
    }
};

/// What the class `mad` counts codes from: the middle, but the zero of a ternary weight, whose sums then need no float
/// correction.
TMAC_ALWAYS_INLINE int32_t mad_centre(const QuantSpec& spec) {
    return spec.codebook == Codebook::ternary ? 1 : 1 << (spec.bits - 1);
}

inline constexpr float kLargestInt8 = 127.0F;

/// How activations of a known largest magnitude become int8.
struct ActScale {
    float inverse;  ///< q = rint(a * inverse); 0 where nothing can be told apart from zero
    float scale;    ///< a is about q * scale
};

TMAC_ALWAYS_INLINE ActScale act_scale_of(float largest) {
    const float inverse = largest > 0.0F ? kLargestInt8 / largest : 0.0F;
    return std::isfinite(inverse) && inverse > 0.0F ? ActScale{inverse, largest / kLargestInt8} : ActScale{0.0F, 0.0F};
}

/// Tables of one act group.
TMAC_ALWAYS_INLINE int8_t* tables_of(const PrepareArgs& args, const ActGroup& group) {
    return static_cast<int8_t*>(args.act) + int64_t{group.padded_begin} * (kLutEntries / kLutGroup);
}

/// Ends one act group's tables: stores its terms. Returns false, with all entries 0 and the terms NaN, where an
/// activation is not finite.
TMAC_ALWAYS_INLINE bool finish_tables(const PrepareArgs& args, int32_t index, float largest, float act_sum,
                                      const ActScale& scale) {
    const bool finite = std::isfinite(act_sum) && std::isfinite(largest);
    args.act_sum[index] = finite ? act_sum : NAN;
    args.act_scale[index] = finite ? scale.scale * 0.5F : NAN;
    if (!finite) {
        const ActGroup& group = args.act_groups[index];
        std::memset(tables_of(args, group), 0, static_cast<size_t>(group.padded_count) * (kLutEntries / kLutGroup));
    }
    return finite;
}

/// Stores the terms of one act group of int8 activations, whose sum is `isum`.
TMAC_ALWAYS_INLINE void finish_int8(const PrepareArgs& args, int32_t index, int32_t isum, float scale) {
    args.act_isum[index] = isum;
    args.act_scale[index] = scale;
    args.act_sum[index] = scale * static_cast<float>(isum);
}

/// The same where an activation is not finite: zeros, and NaN terms.
TMAC_ALWAYS_INLINE void refuse_int8(const PrepareArgs& args, int32_t index) {
    const ActGroup& group = args.act_groups[index];
    int8_t* four = static_cast<int8_t*>(args.act) + group.padded_begin / 4 * args.act_step;
    for (int32_t column = 0; column < group.padded_count; column += 4) {
        std::memset(four, 0, 4);
        four += args.act_step;
    }
    finish_int8(args, index, 0, NAN);
}

/// Calls body.template operator()<B>(token) over [0, m): as many blocks of the first size as fit, then of the next; the
/// last size is 1.
template <int... Sizes, class Body>
TMAC_ALWAYS_INLINE void for_each_token_block(int32_t m, const Body& body) {
    int32_t token = 0;
    const auto blocks = [&]<int Size>() {
        for (; token + Size <= m; token += Size) {
            body.template operator()<Size>(token);
        }
    };
    (blocks.template operator()<Sizes>(), ...);
}

/// Calls body.template operator()<M>(token) for every block of M tokens of [0, m): tokens_in_block() of them, the order
/// in which a kernel with this token_block has its activations in memory.
template <int Largest, class Body>
TMAC_ALWAYS_INLINE void for_each_even_block(int32_t m, const Body& body) {
    for (int32_t token = 0; token < m;) {
        const int32_t count = tokens_in_block(m - token, Largest);
        const auto run = [&]<int... Less>(std::integer_sequence<int, Less...>) {
            ((count == Less + 1 ? body.template operator()<Less + 1>(token) : void()), ...);
        };
        run(std::make_integer_sequence<int, Largest>());
        token += count;
    }
}

/// Calls body.template operator()<Levels>(): with one token the levels of the scales are known.
template <int M, class Body>
TMAC_ALWAYS_INLINE void with_levels(const QgemmArgs& args, const Body& body) {
    if constexpr (M > 1) {
        body.template operator()<Levels::any>();
    } else if (args.scale_type == GroupType::i8) {
        body.template operator()<Levels::two>();
    } else {
        body.template operator()<Levels::one>();
    }
}

/// Calls body(row, row_end) for what [row_begin, row_end) has of every band.
template <class Body>
TMAC_ALWAYS_INLINE void for_each_band(const QgemmArgs& args, const Body& body) {
    for (int64_t row = args.row_begin; row < args.row_end;) {
        const int64_t band_end = (row / kBandRows + 1) * kBandRows;
        const int64_t row_end = band_end < args.row_end ? band_end : args.row_end;
        body(row, row_end);
        row = row_end;
    }
}

/// Where the group values of the first row of a band's part lie.
TMAC_ALWAYS_INLINE GroupPlace place_in_band(const QgemmArgs& args, const BandPlace& place, const ActGroup& group) {
    return {place.value(args.num_groups, group.weight_group), place.value(args.num_super_groups, group.super_group())};
}

/// Where those of a tile's first row lie.
TMAC_ALWAYS_INLINE GroupPlace place_in_tiles(const QgemmArgs& args, int64_t tile, int64_t n_tile,
                                             const ActGroup& group) {
    return {(tile * args.num_groups + group.weight_group) * n_tile,
            (tile * args.num_super_groups + group.super_group()) * n_tile};
}

// Codes in tiles of Codes::kTileRows rows, whose chunks of kColumns columns have kChunkBytes bytes in each of kRegions
// regions, but kLastBytes in the last. A row has four of every register's bytes.

/// The regions of a weight. A copy: a loop that stores results knows it not to change.
struct Regions {
    const uint8_t* first;
    int64_t offsets[kMaxTiledRegions];

    TMAC_ALWAYS_INLINE explicit Regions(const QgemmArgs& args) : first(args.codes) {
        TMAC_UNROLL
        for (int region = 0; region < kMaxTiledRegions; ++region) {
            offsets[region] = args.regions.of[region];
        }
    }

    /// What lies in a region where the first has `codes`, of regions that are all alike.
    TMAC_ALWAYS_INLINE const uint8_t* in(const uint8_t* codes, int region) const {
        return region == 0 ? codes : codes + offsets[region];
    }
};

/// Where a region has the codes whose place in the first region is `codes`.
template <class Codes>
TMAC_ALWAYS_INLINE const uint8_t* in_region(const uint8_t* codes, const Regions& regions, int region) {
    const uint8_t* place = regions.in(codes, region);
    if constexpr (Codes::kLastBytes != Codes::kChunkBytes) {
        if (region == Codes::kRegions - 1) {
            const auto chunk = static_cast<uint64_t>(codes - regions.first) / Codes::kChunkBytes;
            place -= chunk * (Codes::kChunkBytes - Codes::kLastBytes);
        }
    }
    return place;
}

/// First byte of the rows from `row` on, which begins a register.
template <class Codes>
TMAC_ALWAYS_INLINE const uint8_t* codes_in_tiles(const QgemmArgs& args, int64_t row) {
    const int64_t tile_bytes = args.padded_k / Codes::kColumns * Codes::kChunkBytes;
    return args.codes + row / Codes::kTileRows * tile_bytes + row % Codes::kTileRows * 4;
}

/// Where their group values lie in the tiled order.
template <class Codes>
TMAC_ALWAYS_INLINE GroupPlace values_in_tiles(const QgemmArgs& args, int64_t row, const ActGroup& group) {
    return place_in_tiles(args, row / Codes::kTileRows, Codes::kTileRows, group) + row % Codes::kTileRows;
}

}  // namespace
}  // namespace tmac
