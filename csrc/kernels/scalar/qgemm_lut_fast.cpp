#include "kernels/averages.h"
#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// The reference of the class `lut_fast`: the look-ups of `lut`, aggregated by trees of rounding averages of unsigned
// bytes (kernels/averages.h) instead of sums. Tables past the end of an act group are those of zeros.

namespace tmac::scalar {
namespace {

constexpr int32_t kMaxLeaves = 8;

/// The average of a lane's leaves; `leaves` is a power of two.
int32_t average_of(int32_t (&leaf)[kMaxLeaves], int32_t leaves) {
    for (int32_t count = leaves / 2; count >= 1; count /= 2) {
        for (int32_t i = 0; i < count; ++i) {
            leaf[i] = (leaf[2 * i] + leaf[2 * i + 1] + 1) >> 1;
        }
    }
    return leaf[0];
}

/// A_0 + A_1 - A_2 - A_3 of one plane.
int32_t lane_averages(const Row& row, const ActGroup& group, const uint8_t* tables, int32_t plane, int32_t leaves) {
    int32_t sum = 0;
    for (int32_t lane = 0; lane < kAverageLanes; ++lane) {
        int32_t leaf[kMaxLeaves];
        for (int32_t i = 0; i < leaves; ++i) {
            const int32_t table = lane + i * kAverageLanes;
            const int32_t at = table * kLutGroup;
            leaf[i] = at < group.k_count
                          ? tables[table * kLutEntries + (row.plane_bits(plane, group.k_begin + at) & 15)]
                          : static_cast<int32_t>((kZeroEntries >> (8 * lane)) & 0xff);
        }
        const int32_t average = average_of(leaf, leaves);
        sum += lane < kAverageLanes / 2 ? average : -average;
    }
    return sum;
}

int32_t group_isum(const Row& row, const ActGroup& group, const uint8_t* tables) {
    const int32_t bits = row.args.spec->bits;
    const int32_t chunks = (group.k_count + kAverageColumns - 1) / kAverageColumns;
    const int32_t leaves = 2 * tree_chunks(chunks);
    int32_t isum = 0;
    for (int32_t plane = 0; plane < bits; ++plane) {
        const int32_t sum = lane_averages(row, group, tables, plane, leaves) - kAverageOffset;
        isum += sum * (1 << (bits - 1 - plane));
    }
    return isum * leaves;
}

void qgemm(const QgemmArgs& args) {
    const int64_t per_column = kLutEntries / kLutGroup;  // bytes of tables
    const float centre = static_cast<float>((1 << args.spec->bits) - 1) * 0.5F;
    multiply_rows(args, centre, [&](const Row& row, const ActGroup& group, int32_t token) {
        const auto* tables = static_cast<const uint8_t*>(args.act) + token * args.act_stride;
        return group_isum(row, group, tables + group.padded_begin * per_column);
    });
}

void prepare(const PrepareArgs& args) {
    lut_ctor(args);
    offset_tables(args);
}

constexpr uint8_t kGroupActivation = 1U << static_cast<int>(Activation::group);

#define TMAC_ROW(suffix, bits, codebook)                                                                        \
    Kernel {                                                                                                    \
        "qgemm_lut_fast_" suffix "_scalar", bits, codebook, kGroupActivation, Method::lut_fast, Layout::planes, \
            bit_of(Layout::planes), 0, qgemm, prepare                                                           \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut_fast = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::scalar
