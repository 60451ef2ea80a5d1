#pragma once

#include "core/cpu_features.h"
#include "kernels/neon/kernels.h"
#include "kernels/neon/mad_trits.h"

// The rows of the registry, alike for every instruction that multiplies bytes. `Tech` is a type with
//
//     template <class Codes, int Bits> static void run(const QgemmArgs& args)
//
// Fewer than 4 bits are packed as planes, which the look-ups read, too, and in small groups as crumbs; 4 bits as
// nibbles, which are the fastest to unpack, and prompts also take them as planes, beside the look-ups.

namespace tmac::neon {
namespace {

template <class Tech, int Bits>
void qgemm(const QgemmArgs& args) {
    if constexpr (Bits == 2 || Bits == 3) {
        args.layout == Layout::crumbs ? Tech::template run<Crumbs<Bits>, Bits>(args)
                                      : Tech::template run<Quads<Bits>, Bits>(args);
    } else if constexpr (Bits == 1) {
        Tech::template run<Quads<1>, 1>(args);
    } else if constexpr (Bits > 4) {
        Tech::template run<Nibbles<Bits>, Bits>(args);
    } else {
        args.layout == Layout::quads ? Tech::template run<Quads<Bits>, Bits>(args)
                                     : Tech::template run<Nibbles<Bits>, Bits>(args);
    }
}

constexpr uint8_t kBoth = (1U << static_cast<int>(Activation::group)) | (1U << static_cast<int>(Activation::token));

template <class Tech, int Bits>
constexpr Kernel mad_row(const char* name, Codebook codebook, uint32_t features) {
    constexpr Layout kLayout = Bits < 4 ? Layout::quads : Layout::nibbles;
    constexpr LayoutSet kAlso = Bits == 4                ? bit_of(Layout::quads)
                                : Bits == 2 || Bits == 3 ? bit_of(Layout::crumbs)
                                                         : LayoutSet{0};
    constexpr LayoutSet kLayouts = bit_of(kLayout) | kAlso;
    return {name, Bits, codebook, kBoth, Method::mad, kLayout, kLayouts, features, qgemm<Tech, Bits>, act_quant};
}

template <class Tech>
void qgemm_trits(const QgemmArgs& args) {
    Tech::template run<Trits, 2>(args);
}

/// The method `trit`: the same templates over codes that lie five in a byte.
template <class Tech>
constexpr Kernel trit_row(const char* name, uint32_t features) {
    return {name,
            2,
            Codebook::ternary,
            kBoth,
            Method::trit,
            Layout::trits,
            bit_of(Layout::trits),
            features,
            qgemm_trits<Tech>,
            act_quant};
}

/// `suffix`: the end of the names, a string literal.
#define TMAC_MAD_ROWS(Tech, suffix, features)                                       \
    mad_row<Tech, 1>("qgemm_mad_w1_" suffix, Codebook::uniform, features),          \
        mad_row<Tech, 2>("qgemm_mad_w2_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 3>("qgemm_mad_w3_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 4>("qgemm_mad_w4_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 5>("qgemm_mad_w5_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 6>("qgemm_mad_w6_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 7>("qgemm_mad_w7_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 8>("qgemm_mad_w8_" suffix, Codebook::uniform, features),      \
        mad_row<Tech, 2>("qgemm_mad_ternary_" suffix, Codebook::ternary, features), \
        trit_row<Tech>("qgemm_trit_ternary_" suffix, features)

}  // namespace
}  // namespace tmac::neon
