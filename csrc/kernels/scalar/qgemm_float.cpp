#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// The exact, slow path (activation = float): the weight is dequantized, no activation is rounded. Sixteen lanes over k
// per token, so that the compiler can vectorize without changing a bit.

namespace tmac::scalar {
namespace {

constexpr int32_t kTokens = 4;  ///< tokens that share one dequantization

/// Weights of columns [at, at + 8) of a group; past its end they are zero.
void dequantize_eight(const Row& row, const ActGroup& group, int32_t at, float* w) {
    const float scale = row.scale(group);
    const float zero = row.zero(group);
    const bool is_offset = row.args.spec->zero_point == ZeroPoint::offset;
    uint64_t eight = row.codes(group.k_begin + at);
    for (int32_t i = 0; i < 8; ++i, eight >>= 8) {
        const float code = row.args.code_scale * static_cast<float>(eight & 0xffU) + row.args.code_base;
        const float value = is_offset ? code * scale + zero : (code - zero) * scale;
        w[i] = at + i < group.k_count ? value : 0.0F;
    }
}

void add_eight(const float* w, const float* x, int64_t column, int32_t count, float (&lanes)[16]) {
    for (int32_t i = 0; i < count; ++i) {
        float& lane = lanes[(column + i) % 16];
        lane = lane + w[i] * x[column + i];
    }
}

void multiply_row(const Row& row, int32_t token_begin, int32_t tokens) {
    const QgemmArgs& args = row.args;
    float lanes[kTokens][16] = {};
    for (int32_t index = 0; index < args.num_act_groups; ++index) {
        const ActGroup& group = args.act_groups[index];
        for (int32_t at = 0; at < group.k_count; at += 8) {
            float w[8];
            dequantize_eight(row, group, at, w);
            const int32_t count = group.k_count - at < 8 ? group.k_count - at : 8;
            for (int32_t t = 0; t < tokens; ++t) {
                const auto* x = reinterpret_cast<const float*>(static_cast<const uint8_t*>(args.act) +
                                                               (token_begin + t) * args.act_stride);
                add_eight(w, x, group.k_begin + at, count, lanes[t]);
            }
        }
    }
    for (int32_t t = 0; t < tokens; ++t) {
        args.y[(token_begin + t) * args.ldy + row.index] = fold_lanes(lanes[t]);
    }
}

void qgemm(const QgemmArgs& args) {
    for (int64_t n = args.row_begin; n < args.row_end; ++n) {
        for (int32_t token = 0; token < args.m; token += kTokens) {
            multiply_row(row_of(args, n), token, args.m - token < kTokens ? args.m - token : kTokens);
        }
    }
}

constexpr uint8_t kFloat = 1U << static_cast<int>(Activation::float_exact);

#define TMAC_ROW(suffix, bits, codebook)                                                              \
    Kernel {                                                                                          \
        "qgemm_float_" suffix "_scalar", bits, codebook, kFloat, Method::float_exact, Layout::planes, \
            bit_of(Layout::planes), 0, qgemm, act_copy                                                \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform),      TMAC_ROW("w2", 2, Codebook::uniform),
    TMAC_ROW("w3", 3, Codebook::uniform),      TMAC_ROW("w4", 4, Codebook::uniform),
    TMAC_ROW("w5", 5, Codebook::uniform),      TMAC_ROW("w6", 6, Codebook::uniform),
    TMAC_ROW("w7", 7, Codebook::uniform),      TMAC_ROW("w8", 8, Codebook::uniform),
    TMAC_ROW("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_float = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::scalar
