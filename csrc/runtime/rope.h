#pragma once

#include <cstdint>
#include <vector>

#include "runtime/model_config.h"

namespace tmac {

/// Cosines and sines of the rows of one pass for one Rope: [rows][pairs] each.
struct RopeTable {
    std::vector<float> cosines;
    std::vector<float> sines;
    int64_t pairs = 0;

    const float* cos_row(int64_t row) const { return cosines.data() + row * pairs; }
    const float* sin_row(int64_t row) const { return sines.data() + row * pairs; }
};

/// Fills `table` for rows at `positions`, each in a sequence of `lengths` positions, which frequencies may depend on.
/// Angles are f32 products as in transformers; their cosines and sines are computed in double precision.
void make_rope_table(const Rope& rope, const std::vector<int64_t>& positions, const std::vector<int64_t>& lengths,
                     RopeTable& table);

}  // namespace tmac
