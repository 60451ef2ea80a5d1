#pragma once

#include <cstdint>

#include "core/range.h"
#include "ops/weight_view.h"

namespace tmac {

/// Group values as the file format has them, [rows][num_groups]; null where there are none.
struct GroupArrays {
    void* scales;
    void* zeros;
    uint16_t* super_scales = nullptr;
    uint16_t* super_offsets = nullptr;
};

enum class Direction { to_tiles, to_rows };

/// Moves all kinds of group values of some rows between the order of a weight's layout and `arrays`, which begin with
/// row `first_row`. Never writes to the side that `direction` reads.
void move_groups(Direction direction, const WeightView& view, const GroupArrays& arrays, Range range,
                 int64_t first_row);

}  // namespace tmac
