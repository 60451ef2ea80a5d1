#pragma once

#include <cmath>
#include <cstring>

#include "core/bits.h"
#include "core/half.h"
#include "kernels/shared.h"

// What the reference kernels share: reading one row of Layout::planes, and the float epilogue of docs/numerics.md.

namespace tmac::scalar {
namespace {

TMAC_ALWAYS_INLINE float load_group_value(const void* values, GroupType type, int64_t index) {
    switch (type) {
        case GroupType::u8:
            return static_cast<float>(static_cast<const uint8_t*>(values)[index]);
        case GroupType::f16:
            return f16_to_f32(static_cast<const uint16_t*>(values)[index]);
        case GroupType::f32:
            return static_cast<const float*>(values)[index];
        case GroupType::none:
            break;
    }
    return 0.0F;
}

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
        return load_eight(args.codes + plane * args.region_stride + index * row_bytes, row_bytes, column);
    }

    /// Eight codes, one per byte.
    TMAC_ALWAYS_INLINE uint64_t codes(int64_t column) const {
        uint64_t eight = 0;
        for (int32_t plane = 0; plane < args.spec->bits; ++plane) {
            eight = (eight << 1) | spread_bits(plane_bits(plane, column));
        }
        return eight;
    }

    TMAC_ALWAYS_INLINE float scale(int32_t group) const {
        return load_group_value(args.scales, args.scale_type, index * args.num_groups + group);
    }

    /// The zero (or the offset) of a group.
    TMAC_ALWAYS_INLINE float zero(int32_t group) const {
        return args.spec->zero_point == ZeroPoint::fixed
                   ? args.spec->fixed_zero
                   : load_group_value(args.zeros, args.zero_type, index * args.num_groups + group);
    }
};

TMAC_ALWAYS_INLINE Row row_of(const QgemmArgs& args, int64_t index) { return {args, index, (args.k + 7) / 8}; }

/// What the group's sum of activations is multiplied by, when the integer sum counts codes from `centre`.
TMAC_ALWAYS_INLINE float coefficient(ZeroPoint kind, float scale, float zero, float centre) {
    return kind == ZeroPoint::offset ? std::fma(scale, centre, zero) : scale * (centre - zero);
}

TMAC_ALWAYS_INLINE bool has_coefficient(const QuantSpec& spec, float centre) {
    return spec.zero_point != ZeroPoint::fixed || spec.fixed_zero != centre;
}

/// Adds one act group to a row's result.
TMAC_ALWAYS_INLINE float add_group(const Row& row, const ActGroup& group, float centre, int32_t isum, float act_scale,
                                   float act_sum, float y) {
    const float scale = row.scale(group.weight_group);
    y = std::fma(static_cast<float>(isum), scale * act_scale, y);
    if (has_coefficient(*row.args.spec, centre)) {
        y = std::fma(coefficient(row.args.spec->zero_point, scale, row.zero(group.weight_group), centre), act_sum, y);
    }
    return y;
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
