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

/// Bands are what look-ups decode: here come their prompts.
template <int Bits>
void qgemm_planes(const QgemmArgs& args) {
    args.layout == Layout::bands ? qgemm_panel<BandQuads<Bits>, Bits>(args) : qgemm<Quads<Bits>, Bits>(args);
}

template <int Bits>
void qgemm_planes_or_crumbs(const QgemmArgs& args) {
    args.layout == Layout::crumbs ? qgemm<Crumbs<Bits>, Bits>(args) : qgemm_planes<Bits>(args);
}

/// Nibbles are half the work to unpack; planes are there for weights whose leading ones draft.
void qgemm_w4(const QgemmArgs& args) {
    args.layout == Layout::wide_nibbles ? qgemm<Nibbles<4>, 4>(args) : qgemm_planes<4>(args);
}

constexpr uint8_t kBoth = (1U << static_cast<int>(Activation::group)) | (1U << static_cast<int>(Activation::token));
constexpr LayoutSet kPlanes = bit_of(Layout::wide_quads) | bit_of(Layout::bands);
constexpr LayoutSet kPlanesOrCrumbs = kPlanes | bit_of(Layout::crumbs);
constexpr uint32_t kFeatures = kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni;

#define TMAC_ROW(suffix, bits, codebook, layout, layouts, run)                                                   \
    Kernel {                                                                                                     \
        "qgemm_mad_" suffix "_avx512_vnni", bits, codebook, kBoth, Method::mad, layout, layouts, kFeatures, run, \
            act_quant, kTokenBlock                                                                               \
    }
#define TMAC_PLANES(suffix, bits, codebook) \
    TMAC_ROW(suffix, bits, codebook, Layout::wide_quads, kPlanesOrCrumbs, qgemm_planes_or_crumbs<bits>)
#define TMAC_NIBBLES(suffix, bits)                                                                \
    TMAC_ROW(suffix, bits, Codebook::uniform, Layout::wide_nibbles, bit_of(Layout::wide_nibbles), \
             (qgemm<Nibbles<bits>, bits>))

constinit const Kernel rows[] = {
    TMAC_ROW("w1", 1, Codebook::uniform, Layout::wide_quads, kPlanes, qgemm_planes<1>),
    TMAC_PLANES("w2", 2, Codebook::uniform),
    TMAC_PLANES("w3", 3, Codebook::uniform),
    TMAC_ROW("w4", 4, Codebook::uniform, Layout::wide_nibbles, bit_of(Layout::wide_nibbles) | kPlanes, qgemm_w4),
    TMAC_NIBBLES("w5", 5),
    TMAC_NIBBLES("w6", 6),
    TMAC_NIBBLES("w7", 7),
    TMAC_NIBBLES("w8", 8),
    TMAC_PLANES("ternary", 2, Codebook::ternary),
};

}  // namespace

constinit const KernelTable qgemm_mad = {rows, sizeof(rows) / sizeof(rows[0])};

}  // namespace tmac::avx512
