#pragma once

#include <cstdint>
#include <vector>

#include "core/quant_spec.h"

namespace tmac {

/// A run of columns whose activations share one scale. It lies inside one weight group.
///
/// In memory (tables, int8 activations, kernel layouts) every act group starts at `padded_begin`, a multiple of the
/// layout's k_chunk; the columns that fill it up have zero activations, so whatever codes stand there count nothing.
struct ActGroup {
    int32_t k_begin;
    int32_t k_count;
    int32_t padded_begin;
    int32_t padded_count;
    int32_t weight_group;
};

inline constexpr int32_t kActGroupSize = 128;  ///< T-MAC's act_group_size: weight groups are cut into such pieces
inline constexpr int32_t kTokenGroupSize = 1 << 16;  ///< int32 sums of 8-bit codes and int8 activations stay exact

/// The act groups of a row of `k` columns, in order of k. All but the last of a weight group are full pieces.
std::vector<ActGroup> make_act_groups(const QuantSpec& spec, int64_t k, int32_t k_chunk);

/// Columns of a row after padding: the end of its last act group.
int64_t padded_columns(const QuantSpec& spec, int64_t k, int32_t k_chunk);

}  // namespace tmac
