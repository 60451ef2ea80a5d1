#include "core/cpu_features.h"
#include "kernels/avx512/kernels.h"
#include "kernels/avx512/mad_panel.h"
#include "kernels/avx512/mad_small.h"

// Codes times int8 activations by vpdpbusd, exact in int32: planes of 1 to 4 bits as the look-ups read them, codes of 4
// to 8 bits in nibbles. A few tokens multiply codes that are unpacked in registers; more share an unpacked panel.

namespace tmac::avx512 {
namespace {

constexpr int32_t kLargestSmall = 16;  ///< tokens up to which unpacking in registers is faster than a panel

template <class Codes, int Bits>
void qgemm(const QgemmArgs& args) {
    args.m <= kLargestSmall ? qgemm_small<Codes, Bits>(args) : qgemm_panel<Codes, Bits>(args);
}

constexpr uint8_t kBoth = (1U << static_cast<int>(Activation::group)) | (1U << static_cast<int>(Activation::token));
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni;

#define TMAC_ROW(suffix, bits, codebook, codes, layout)                                                            \
    Kernel {                                                                                                       \
        "qgemm_mad_" suffix "_avx512_vnni", bits, codebook, kBoth, Method::mad, layout, bit_of(layout), kFeatures, \
            qgemm<codes<bits>, bits>, act_quant, kTokenBlock                                                       \
    }

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform, Quads, Layout::quads),
    TMAC_ROW("w2", 2, Codebook::uniform, Quads, Layout::quads),
    TMAC_ROW("w3", 3, Codebook::uniform, Quads, Layout::quads),
    TMAC_ROW("w4", 4, Codebook::uniform, Quads, Layout::quads),
    TMAC_ROW("w5", 5, Codebook::uniform, Nibbles, Layout::nibbles),
    TMAC_ROW("w6", 6, Codebook::uniform, Nibbles, Layout::nibbles),
    TMAC_ROW("w7", 7, Codebook::uniform, Nibbles, Layout::nibbles),
    TMAC_ROW("w8", 8, Codebook::uniform, Nibbles, Layout::nibbles),
    TMAC_ROW("ternary", 2, Codebook::ternary, Quads, Layout::quads),
};

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
