#include "kernels/neon/kernels.h"
#include "kernels/neon/simd.h"

// Tables of the class `lut` (docs/numerics.md), four at a time: ld4 puts column i of four tables into one register, so
// that every lane is a table. Entry e adds column i where bit i of e is set and subtracts it elsewhere; entry 15 - e is
// minus entry e (mirror consolidation), so the entries 8..15, those that add column 3, are computed, in two registers
// of bytes: entry 8 + e of table t at byte 4 e + t. A look-up in those and their negatives turns them into tables.

namespace tmac::neon {
namespace {

constexpr int kComputed = kLutEntries / 2;
constexpr int kTables = kStepColumns / kLutGroup;  ///< per step

/// lane[j] + lane[j + 8], then the same with 4, 2 and 1: the scalar reference's order.
TMAC_ALWAYS_INLINE float fold_lanes(const float32x4_t (&lanes)[4]) {
    const float32x4_t four = vaddq_f32(vaddq_f32(lanes[0], lanes[2]), vaddq_f32(lanes[1], lanes[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

/// Bytes of eight registers of small int32: register e, lane t at byte 4 e + t of the pair.
TMAC_ALWAYS_INLINE int8x16x2_t narrow(const int32x4_t (&entries)[kComputed]) {
    int16x8_t pairs_i16x8[4];
    TMAC_UNROLL
    for (int i = 0; i < 4; ++i) {
        pairs_i16x8[i] = vuzp1q_s16(vreinterpretq_s16_s32(entries[2 * i]), vreinterpretq_s16_s32(entries[2 * i + 1]));
    }
    return {{vuzp1q_s8(vreinterpretq_s8_s16(pairs_i16x8[0]), vreinterpretq_s8_s16(pairs_i16x8[1])),
             vuzp1q_s8(vreinterpretq_s8_s16(pairs_i16x8[2]), vreinterpretq_s8_s16(pairs_i16x8[3]))}};
}

TMAC_ALWAYS_INLINE void build_tables(const float* sixteen, float inverse, int8_t* tables) {
    const float32x4x4_t a = vld4q_f32(sixteen);
    const float32x4_t plus01 = vaddq_f32(a.val[0], a.val[1]);
    const float32x4_t minus01 = vsubq_f32(a.val[0], a.val[1]);
    const float32x4_t low23 = vsubq_f32(a.val[3], a.val[2]);
    const float32x4_t high23 = vaddq_f32(a.val[3], a.val[2]);
    const float32x4_t sums[kComputed] = {
        vsubq_f32(low23, plus01),  vaddq_f32(low23, minus01),  vsubq_f32(low23, minus01),  vaddq_f32(low23, plus01),
        vsubq_f32(high23, plus01), vaddq_f32(high23, minus01), vsubq_f32(high23, minus01), vaddq_f32(high23, plus01)};
    int32x4_t rounded[kComputed];
    TMAC_UNROLL
    for (int i = 0; i < kComputed; ++i) {
        rounded[i] = vcvtnq_s32_f32(vmulq_n_f32(sums[i], inverse));
    }
    const int8x16x2_t upper = narrow(rounded);
    const int8x16x4_t both = {{upper.val[0], upper.val[1], vnegq_s8(upper.val[0]), vnegq_s8(upper.val[1])}};
    // Entries 0..7 are minus 15..8, so their bytes stand in the negatives, last first; 8..15 follow in order.
    static constexpr uint8_t kEntryBytes[kLutEntries] = {60, 56, 52, 48, 44, 40, 36, 32, 0, 4, 8, 12, 16, 20, 24, 28};
    const uint8x16_t first = vld1q_u8(kEntryBytes);
    TMAC_UNROLL
    for (int t = 0; t < kTables; ++t) {
        const uint8x16_t at = vaddq_u8(first, vdupq_n_u8(static_cast<uint8_t>(t)));
        vst1q_s8(tables + t * kLutEntries, vqtbl4q_s8(both, at));
    }
}

void build_group(const PrepareArgs& args, const ActGroup& group, int32_t index) {
    float32x4_t lanes[4] = {};
    float32x4_t largest_lanes = vdupq_n_f32(0.0F);
    float padded[kStepColumns];
    for (int32_t at = 0; at < group.k_count; at += kStepColumns) {
        const float* columns = columns_at(args.x, group, at, padded);
        float32x4_t magnitude[4];
        TMAC_UNROLL
        for (int i = 0; i < 4; ++i) {
            const float32x4_t four = vld1q_f32(columns + i * kLanes);
            lanes[i] = vaddq_f32(lanes[i], four);
            magnitude[i] = vabsq_f32(four);
        }
        // Adding neighbours twice: (|a0| + |a1|) + (|a2| + |a3|) of each group of four columns.
        const float32x4_t sums =
            vpaddq_f32(vpaddq_f32(magnitude[0], magnitude[1]), vpaddq_f32(magnitude[2], magnitude[3]));
        largest_lanes = vmaxq_f32(largest_lanes, sums);
    }
    const float act_sum = fold_lanes(lanes);
    const float largest = vmaxvq_f32(largest_lanes);
    const ActScale scale = act_scale_of(largest);
    if (!finish_tables(args, index, largest, act_sum, scale)) {
        return;
    }
    int8_t* tables = tables_of(args, group);
    for (int32_t at = 0; at < group.padded_count; at += kStepColumns) {
        build_tables(columns_at(args.x, group, at, padded), scale.inverse, tables + at * (kLutEntries / kLutGroup));
    }
}

}  // namespace

void lut_ctor(const PrepareArgs& args) {
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        build_group(args, args.act_groups[index], index);
    }
}

}  // namespace tmac::neon
