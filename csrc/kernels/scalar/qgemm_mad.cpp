#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// The reference of the class `mad`: codes, counted from mad_centre(), times int8 activations, exact in int32.

namespace tmac::scalar {
namespace {

int32_t group_isum(const Row& row, const ActGroup& group, const int8_t* q, int32_t centre) {
    int32_t isum = 0;
    for (int32_t at = 0; at < group.k_count; at += 8) {
        uint64_t eight = row.codes(group.k_begin + at);
        for (int32_t i = at; i < at + 8 && i < group.k_count; ++i) {
            isum += (static_cast<int32_t>(eight & 0xffU) - centre) * q[i];
            eight >>= 8;
        }
    }
    return isum;
}

void qgemm(const QgemmArgs& args) {
    const int32_t centre = mad_centre(*args.spec);
    multiply_rows(args, static_cast<float>(centre), [&](const Row& row, const ActGroup& group, int32_t token) {
        const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
        return group_isum(row, group, q + group.padded_begin, centre);
    });
}

constexpr uint8_t kToken = 1U << static_cast<int>(Activation::token);
constexpr uint8_t kBoth = kToken | (1U << static_cast<int>(Activation::group));

#define TMAC_ROW(suffix, bits, codebook, activations)                                            \
    Kernel {                                                                                     \
        "qgemm_mad_" suffix "_scalar", bits, codebook, activations, Method::mad, Layout::planes, \
            bit_of(Layout::planes), 0, qgemm, act_quant                                          \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform, kBoth),      TMAC_ROW("w2", 2, Codebook::uniform, kBoth),
    TMAC_ROW("w3", 3, Codebook::uniform, kBoth),      TMAC_ROW("w4", 4, Codebook::uniform, kBoth),
    TMAC_ROW("w5", 5, Codebook::uniform, kBoth),      TMAC_ROW("w6", 6, Codebook::uniform, kBoth),
    TMAC_ROW("w7", 7, Codebook::uniform, kBoth),      TMAC_ROW("w8", 8, Codebook::uniform, kBoth),
    TMAC_ROW("ternary", 2, Codebook::ternary, kBoth),
};

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::scalar
