#pragma once

#include "kernels/kernel.h"

// What the kernels of the class `lut_fast` (docs/numerics.md) share: entries as unsigned bytes, and the shape of the
// trees of rounding averages.
//
// Table t of an act group belongs to lane t % 4. Lanes 0 and 1 hold entry + 128, lanes 2 and 3 hold 127 - entry: a
// rounding average rounds up, so that the first two lanes come out a little too large, the other two a little too
// small, and the four together unbiased. A lane's tables 0, 4, 8, ... are averaged in pairs, the averages in pairs
// again, until one is left: log2(leaves) levels. With A_j the average of lane j
//
//     isum of a plane = leaves * (A_0 + A_1 - A_2 - A_3 - 2),
//
// because (A_0 - 128) + (A_1 - 128) + (127 - A_2) + (127 - A_3) is four times the mean entry.

namespace tmac {
namespace {

inline constexpr int32_t kAverageLanes = 4;
inline constexpr int32_t kAverageColumns = 32;           ///< two tables of every lane: a chunk
inline constexpr int32_t kAverageOffset = 2;             ///< A_0 + A_1 - A_2 - A_3 of zeros
inline constexpr uint32_t kZeroEntries = 0x7f'7f'80'80;  ///< bytes: an entry of 0 in lanes 0 to 3

/// Chunks of a tree over `chunks` of them: the next power of two; those that are missing hold zeros.
constexpr int32_t tree_chunks(int32_t chunks) { return chunks == 3 ? 4 : chunks; }

/// log2 of a lane's number of leaves.
constexpr int32_t tree_levels(int32_t chunks) { return chunks == 1 ? 1 : chunks == 2 ? 2 : 3; }

/// Turns the tables of the class `lut` into unsigned bytes. Two neighbouring tables of two lanes are 32 bytes.
TMAC_ALWAYS_INLINE void offset_tables(const PrepareArgs& args) {
    constexpr int32_t kPairBytes = 2 * kLutEntries;
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        const ActGroup& group = args.act_groups[index];
        auto* pair = static_cast<uint8_t*>(args.act) + int64_t{group.padded_begin} * (kLutEntries / kLutGroup);
        for (int32_t column = 0; column < group.padded_count; column += 2 * kLutGroup) {
            const auto flip = static_cast<uint8_t>(column / (2 * kLutGroup) % 2 == 0 ? 0x80 : 0x7f);
            for (int32_t i = 0; i < kPairBytes; ++i) {
                pair[i] ^= flip;  // + 128, or 127 -
            }
            pair += kPairBytes;
        }
    }
}

}  // namespace
}  // namespace tmac
