#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// The reference of the class `lut`. A code is its planes' bits, b_p in {0, 1}; with s_p = 2 b_p - 1
//     code = sum_p 2^p b_p = (2^bits - 1) / 2 + sum_p 2^p s_p / 2,
// so a row's product with four columns is half the sum over planes of 2^p times one table entry, plus the centre
// (2^bits - 1) / 2 times the columns' sum. The half stands in act_scale.

namespace tmac::scalar {
namespace {

int32_t group_isum(const Row& row, const ActGroup& group, const int8_t* tables) {
    const int32_t bits = row.args.spec->bits;
    int32_t isum = 0;
    for (int32_t plane = 0; plane < bits; ++plane) {
        int32_t sum = 0;
        for (int32_t at = 0; at < group.k_count; at += kLutGroup) {
            const int32_t entry = row.plane_bits(plane, group.k_begin + at) & 15;
            sum += tables[at / kLutGroup * kLutEntries + entry];
        }
        isum += sum * (1 << (bits - 1 - plane));
    }
    return isum;
}

void qgemm(const QgemmArgs& args) {
    const int64_t per_column = kLutEntries / kLutGroup;  // bytes of tables
    const float centre = static_cast<float>((1 << args.spec->bits) - 1) * 0.5F;
    multiply_rows(args, centre, [&](const Row& row, const ActGroup& group, int32_t token) {
        const auto* tables = static_cast<const int8_t*>(args.act) + token * args.act_stride;
        return group_isum(row, group, tables + group.padded_begin * per_column);
    });
}

constexpr uint8_t kGroupActivation = 1U << static_cast<int>(Activation::group);

#define TMAC_ROW(suffix, bits, codebook)                                                              \
    Kernel {                                                                                          \
        "qgemm_lut_" suffix "_scalar", bits, codebook, kGroupActivation, Method::lut, Layout::planes, \
            bit_of(Layout::planes), 0, qgemm, lut_ctor                                                \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_lut = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::scalar
