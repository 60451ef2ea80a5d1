#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// Tables of the class `lut` (docs/numerics.md). Four columns a0..a3 have sixteen signed sums; bit i of the entry's
// index says + or - for a_i, so that a nibble of a bit plane is the index. Entry 15 - e is minus entry e (mirror
// consolidation): eight are computed.

namespace tmac::scalar {
namespace {

struct Four {
    float a[kLutGroup];
};

TMAC_ALWAYS_INLINE Four load_four(const PrepareArgs& args, const ActGroup& group, int32_t at) {
    Four four{};
    for (int32_t i = 0; i < kLutGroup && at + i < group.k_count; ++i) {
        four.a[i] = args.x[group.k_begin + at + i];
    }
    return four;
}

void build_table(const Four& four, float inverse, int8_t* table) {
    for (int32_t entry = 0; entry < kLutEntries / 2; ++entry) {
        float signed_a[kLutGroup];
        for (int32_t i = 0; i < kLutGroup; ++i) {
            signed_a[i] = ((entry >> i) & 1) != 0 ? four.a[i] : -four.a[i];
        }
        const float sum = (signed_a[0] + signed_a[1]) + (signed_a[2] + signed_a[3]);
        const auto rounded = static_cast<int8_t>(std::nearbyint(sum * inverse));
        table[entry] = rounded;
        table[kLutEntries - 1 - entry] = static_cast<int8_t>(-rounded);
    }
}

void build_group(const PrepareArgs& args, const ActGroup& group, int32_t index) {
    float lanes[16] = {};
    float largest = 0.0F;
    for (int32_t at = 0; at < group.padded_count; at += kLutGroup) {
        const Four four = load_four(args, group, at);
        for (int32_t i = 0; i < kLutGroup; ++i) {
            lanes[(at + i) % 16] += four.a[i];
        }
        const float sum = (std::fabs(four.a[0]) + std::fabs(four.a[1])) + (std::fabs(four.a[2]) + std::fabs(four.a[3]));
        largest = sum > largest ? sum : largest;
    }
    const ActScale scale = act_scale_of(largest);
    if (!finish_tables(args, index, largest, fold_lanes(lanes), scale)) {
        return;
    }
    int8_t* tables = tables_of(args, group);
    for (int32_t at = 0; at < group.padded_count; at += kLutGroup) {
        build_table(load_four(args, group, at), scale.inverse, tables + at / kLutGroup * kLutEntries);
    }
}

}  // namespace

void lut_ctor(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        build_group(args, args.act_groups[index], index);
    }
}

}  // namespace tmac::scalar
