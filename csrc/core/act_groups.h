#pragma once

#include <cstdint>
#include <vector>

#include "core/layout.h"
#include "core/quant_spec.h"

namespace tmac {

inline constexpr int32_t kActGroupSize = 128;        ///< T-MAC's act_group_size: weight groups are cut into such pieces
inline constexpr int32_t kTokenGroupSize = 1 << 16;  ///< int32 sums of 8-bit codes and int8 activations stay exact

/// The act groups of a row of `k` columns, in order of k. All but the last of a weight group are full pieces.
std::vector<ActGroup> make_act_groups(const QuantSpec& spec, int64_t k, int32_t k_chunk);

/// Columns of a row after padding: the end of its last act group.
int64_t padded_columns(const QuantSpec& spec, int64_t k, int32_t k_chunk);

}  // namespace tmac
