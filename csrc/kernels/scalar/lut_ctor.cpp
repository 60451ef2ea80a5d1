#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// Tables of the class `lut` (docs/numerics.md). Four columns a0..a3 have sixteen signed sums; bit i of the entry's
// index says + or - for a_i, so that a nibble of a bit plane is the index. Entry 15 - e is minus entry e (mirror
// consolidation): eight are computed.

namespace tmac::scalar {
namespace {

constexpr float kLargestEntry = 127.0F;

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
    float act_sum = fold_lanes(lanes);
    float inverse = largest > 0.0F ? kLargestEntry / largest : 0.0F;
    inverse = std::isfinite(inverse) ? inverse : 0.0F;
    float act_scale = inverse > 0.0F ? largest / kLargestEntry * 0.5F : 0.0F;
    auto* tables = static_cast<int8_t*>(args.act) + int64_t{group.padded_begin} * (kLutEntries / kLutGroup);
    const int64_t bytes = int64_t{group.padded_count} * (kLutEntries / kLutGroup);
    if (!std::isfinite(act_sum) || !std::isfinite(largest)) {
        act_sum = act_scale = NAN;
        std::memset(tables, 0, static_cast<size_t>(bytes));
    } else {
        for (int32_t at = 0; at < group.padded_count; at += kLutGroup) {
            build_table(load_four(args, group, at), inverse, tables + at / kLutGroup * kLutEntries);
        }
    }
    args.act_sum[index] = act_sum;
    args.act_scale[index] = act_scale;
}

}  // namespace

void lut_ctor(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        build_group(args, args.act_groups[index], index);
    }
}

}  // namespace tmac::scalar
