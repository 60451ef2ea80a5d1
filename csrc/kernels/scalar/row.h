#pragma once

#include <cmath>
#include <cstring>

#include "core/bits.h"
#include "core/group_value.h"
#include "kernels/shared.h"

// What the reference kernels share: reading one row of Layout::planes, and the float epilogue of docs/numerics.md.

namespace tmac::scalar {
namespace {

/// One row at a time: the registers that kernels/shared.h asks for are plain numbers.
struct Floats {
    using F = float;
    using I = int32_t;

    static TMAC_ALWAYS_INLINE F set1(float value) { return value; }
    static TMAC_ALWAYS_INLINE F to_float(I value) { return static_cast<float>(value); }
    static TMAC_ALWAYS_INLINE F subtract(F a, F b) { return a - b; }
    static TMAC_ALWAYS_INLINE F multiply(F a, F b) { return a * b; }
    static TMAC_ALWAYS_INLINE F multiply_add(F a, F b, F c) { return std::fma(a, b, c); }
    static TMAC_ALWAYS_INLINE F multiply_subtract(F a, F b, F c) { return std::fma(a, b, -c); }
    static TMAC_ALWAYS_INLINE F load(const float* value) { return *value; }
    static TMAC_ALWAYS_INLINE F widen(const uint16_t* half) { return f16_to_f32(*half); }
    static TMAC_ALWAYS_INLINE F widen(const uint8_t* byte) { return static_cast<float>(*byte); }
    static TMAC_ALWAYS_INLINE F widen(const int8_t* byte) { return static_cast<float>(*byte); }
};

/// The bits of columns [column, column + 8) of a plane's row; past the end of the row they are zero.
TMAC_ALWAYS_INLINE uint8_t load_eight(const uint8_t* row, int64_t row_bytes, int64_t column) {
    const int64_t byte = column / 8;
    const auto low = byte < row_bytes ? uint32_t{row[byte]} : 0U;
    const auto high = byte + 1 < row_bytes ? uint32_t{row[byte + 1]} : 0U;
    return static_cast<uint8_t>(((high << 8) | low) >> (column % 8));
}

/// One row of the weight, in the order of the file.
struct Row {
    const QgemmArgs& args;
    int64_t index;
    int64_t row_bytes;

    TMAC_ALWAYS_INLINE uint8_t plane_bits(int32_t plane, int64_t column) const {
        return load_eight(args.codes + args.regions.of[plane] + index * row_bytes, row_bytes, column);
    }

    /// Eight codes, one per byte.
    TMAC_ALWAYS_INLINE uint64_t codes(int64_t column) const {
        uint64_t eight = 0;
        for (int32_t plane = 0; plane < args.spec->bits; ++plane) {
            eight = (eight << 1) | spread_bits(plane_bits(plane, column));
        }
        return eight;
    }

    TMAC_ALWAYS_INLINE GroupPlace place(const ActGroup& group) const { return place_in_tiles(args, index, 1, group); }

    TMAC_ALWAYS_INLINE float scale(const ActGroup& group) const {
        const float value = load_group_value(args.scales, args.scale_type, place(group).value);
        return args.scale_type == GroupType::i8 ? f16_to_f32(args.super_scales[place(group).super_value]) * value
                                                : value;
    }

    /// The zero (or the offset) of a group.
    TMAC_ALWAYS_INLINE float zero(const ActGroup& group) const {
        if (args.spec->zero_point == ZeroPoint::fixed) {
            return args.spec->fixed_zero;
        }
        const float value = load_group_value(args.zeros, args.zero_type, place(group).value);
        return args.zero_type == GroupType::i8 ? -(f16_to_f32(args.super_offsets[place(group).super_value]) * value)
                                               : value;
    }
};

TMAC_ALWAYS_INLINE Row row_of(const QgemmArgs& args, int64_t index) { return {args, index, (args.k + 7) / 8}; }

/// The integer methods: `isum(row, group, token)` is a group's exact sum, counted from `centre`.
template <class Isum>
TMAC_ALWAYS_INLINE void multiply_rows(const QgemmArgs& args, float centre, const Isum& isum) {
    const Epilogue<Floats> epilogue(args, centre);
    for (int64_t n = args.row_begin; n < args.row_end; ++n) {
        const Row row = row_of(args, n);
        for (int32_t token = 0; token < args.m; ++token) {
            float y = 0.0F;
            for (int32_t i = 0; i < args.num_act_groups; ++i) {
                const ActGroup& group = args.act_groups[i];
                const GroupTerms<Floats> terms = epilogue.load(row.place(group));
                const int64_t at = int64_t{token} * args.num_act_groups + i;
                y = epilogue.add(terms, isum(row, group, token), args.act_scale[at], args.act_sum[at], y);
            }
            args.y[token * args.ldy + n] = y;
        }
    }
}

/// Sixteen lanes to one number, halving: the order that vector registers fold in.
TMAC_ALWAYS_INLINE float fold_lanes(float (&lanes)[16]) {
    for (int32_t width = 8; width >= 1; width /= 2) {
        for (int32_t j = 0; j < width; ++j) {
            lanes[j] += lanes[j + width];
        }
    }
    return lanes[0];
}

}  // namespace
}  // namespace tmac::scalar
