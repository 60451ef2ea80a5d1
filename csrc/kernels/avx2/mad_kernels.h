#pragma once

#include "core/cpu_features.h"
#include "kernels/avx2/kernels.h"
#include "kernels/avx2/mad_panel.h"
#include "kernels/avx2/mad_small.h"

// The rows of the class `mad`, the same for both ways to multiply. A weight that the look-ups decode lies in
// Layout::rows and comes here for prompts; one that these kernels decode has a layout that unpacks faster, or planes of
// which the leading ones draft.

namespace tmac::avx2 {
namespace {

template <class Dot, class Codes>
void qgemm_in_order(const QgemmArgs& args) {
    args.m <= Codes::kLargestSmall ? qgemm_small<Dot, Codes>(args) : qgemm_panel<Dot, Codes>(args);
}

template <class Dot, int Bits>
void qgemm_of(const QgemmArgs& args) {
    switch (args.layout) {
        case Layout::rows:
            if constexpr (Bits <= 4) {
                qgemm_panel<Dot, Rows<Dot, Bits>>(args);
            }
            break;
        case Layout::quads:
            if constexpr (Bits <= 4) {
                qgemm_in_order<Dot, Quads<Dot, Bits>>(args);
            }
            break;
        case Layout::nibbles:
            if constexpr (Bits == 5 || Bits == 6) {
                qgemm_in_order<Dot, NarrowNibbles<Bits>>(args);
            } else if constexpr (Bits >= 4) {
                qgemm_in_order<Dot, Nibbles<Dot, Bits == 4 ? 4 : 8>>(args);
            }
            break;
        case Layout::crumbs:
            if constexpr (Bits == 2 || Bits == 3) {
                qgemm_in_order<Dot, Crumbs<Bits>>(args);
            }
            break;
        default:
            break;  // not among readable_layouts()
    }
}

constexpr Layout decoding_layout(int bits) { return bits < 4 ? Layout::quads : Layout::nibbles; }
constexpr LayoutSet readable_layouts(int bits) {
    return static_cast<LayoutSet>(bit_of(decoding_layout(bits)) |
                                  (bits <= 4 ? bit_of(Layout::rows) | bit_of(Layout::quads) : 0) |
                                  (bits == 2 || bits == 3 ? bit_of(Layout::crumbs) : 0));
}

template <class Dot, int Bits>
constexpr Kernel mad_row(const char* name, uint32_t features, Codebook codebook = Codebook::uniform) {
    return {name,
            Bits,
            codebook,
            kBoth,
            Method::mad,
            decoding_layout(Bits),
            readable_layouts(Bits),
            features,
            qgemm_of<Dot, Bits>,
            act_quant,
            kTokenBlock};
}

#define TMAC_MAD_ROWS(dot, suffix, features)            \
    {mad_row<dot, 1>("qgemm_mad_w1_" suffix, features), \
     mad_row<dot, 2>("qgemm_mad_w2_" suffix, features), \
     mad_row<dot, 3>("qgemm_mad_w3_" suffix, features), \
     mad_row<dot, 4>("qgemm_mad_w4_" suffix, features), \
     mad_row<dot, 5>("qgemm_mad_w5_" suffix, features), \
     mad_row<dot, 6>("qgemm_mad_w6_" suffix, features), \
     mad_row<dot, 7>("qgemm_mad_w7_" suffix, features), \
     mad_row<dot, 8>("qgemm_mad_w8_" suffix, features), \
     mad_row<dot, 2>("qgemm_mad_ternary_" suffix, features, Codebook::ternary)}

}  // namespace
}  // namespace tmac::avx2
