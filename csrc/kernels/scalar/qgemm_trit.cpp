#include "core/trit_byte.h"
#include "kernels/scalar/kernels.h"
#include "kernels/scalar/row.h"

// The reference of the method `trit`: five codes from a byte of Layout::trits by a table, then as in the class `mad`.

namespace tmac::scalar {
namespace {

constexpr LayoutShape kShape = layout_shape(Layout::trits, 2);
constexpr int32_t kCentre = 2;

struct CodesOfBytes {
    uint16_t entries[256];
};

consteval CodesOfBytes make_codes_of_bytes() {
    CodesOfBytes table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        table.entries[byte] = static_cast<uint16_t>(codes_of_trit_byte(byte));
    }
    return table;
}

constinit const CodesOfBytes kCodes = make_codes_of_bytes();

/// `row`: its first four bytes of the act group; 20 columns later follow the next ones.
int32_t group_isum(const uint8_t* row, const ActGroup& group, const int8_t* q) {
    int32_t isum = 0;
    for (int32_t at = 0; at < group.k_count; at += kShape.k_chunk) {
        for (int32_t i = 0; i < 4; ++i) {
            const uint32_t codes = kCodes.entries[row[i]];
            for (int32_t j = 0; j < kTritsInByte; ++j) {
                isum += (static_cast<int32_t>(codes >> (2 * j) & 3U) - kCentre) * q[at + i + 4 * j];
            }
        }
        row += kShape.chunk_bytes;
    }
    return isum;
}

void qgemm(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>(kCentre));
    const int64_t tile_bytes = args.padded_k / kShape.k_chunk * kShape.chunk_bytes;
    for (int64_t n = args.row_begin; n < args.row_end; ++n) {
        const int64_t tile = n / kShape.n_tile;
        const int64_t in_tile = n % kShape.n_tile;
        const uint8_t* row = args.codes + tile * tile_bytes + in_tile * 4;
        for (int32_t token = 0; token < args.m; ++token) {
            const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
            float y = 0.0F;
            for (int32_t i = 0; i < args.num_act_groups; ++i) {
                const ActGroup& group = args.act_groups[i];
                const GroupPlace values = place_in_tiles(args, tile, kShape.n_tile, group) + in_tile;
                const int64_t at = int64_t{token} * args.num_act_groups + i;
                const uint8_t* codes = row + int64_t{group.padded_begin / kShape.k_chunk} * kShape.chunk_bytes;
                y = epilogue.add(epilogue.load(values), group_isum(codes, group, q + group.padded_begin),
                                 args.act_scale[at], args.act_sum[at], y);
            }
            args.y[token * args.ldy + n] = y;
        }
    }
}

constexpr uint8_t kBoth = (1U << static_cast<int>(Activation::group)) | (1U << static_cast<int>(Activation::token));

constinit const Kernel rows[] = {
    {"qgemm_trit_ternary_scalar", 2, Codebook::ternary, kBoth, Method::trit, Layout::trits, bit_of(Layout::trits), 0,
     qgemm, act_quant},
};

}  // namespace

constinit const KernelTable qgemm_trit = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::scalar
