#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/quant_spec.h"

namespace tmac {

/// What a quantizer hands back: codes [n][k], group values [n][num_groups] as the file format wants them.
struct QuantizedRows {
    std::vector<uint8_t> codes;
    std::vector<uint8_t> scales;          ///< f16 or f32 by spec.scale_format; i8 with two levels
    std::vector<uint8_t> zeros;           ///< u8 (integer) or the scales' type (real, offset); empty for a fixed zero
    std::vector<uint16_t> super_scales;   ///< f16 [n][num_super_groups] with two levels; else empty
    std::vector<uint16_t> super_offsets;  ///< the same where there are offsets
    GroupType scale_type;
    GroupType zero_type;
};

/// Rounds `weight` f32 [n][k] to the nearest codes; the scale and zero of every group are searched for the least
/// squared error after their own rounding. `importance` [k]: how much the error of each column counts, at least 0;
/// what is below 2^-20 of the largest of its group (of 256 columns, with two levels) counts as that. Null: as
/// GroupSearch::load says. Throws std::invalid_argument on a NaN or an infinity, and where a scale does not fit its
/// type.
QuantizedRows round_to_nearest(const float* weight, int64_t n, int64_t k, const QuantSpec& spec, int num_threads,
                               const float* importance = nullptr);

}  // namespace tmac
