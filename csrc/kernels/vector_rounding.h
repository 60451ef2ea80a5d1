#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_softmax.h"

// Numbers as integers with one scale.

namespace tmac {
namespace {

struct RoundingScale {
    float inverse;  ///< q = rint(x * inverse)
    float scale;    ///< x is about q * scale
};

/// So that the largest of the magnitudes becomes `most`. A NaN in `unordered`, or an infinite magnitude, makes the
/// scale NaN: a result that reads the numbers shows it. Magnitudes too small to be told apart become 0.
template <class V>
TMAC_ALWAYS_INLINE RoundingScale rounding_scale(typename V::F magnitudes, typename V::F unordered, float most) {
    const float largest = V::fold(unordered) == 0.0F ? largest_lane<V>(magnitudes) : NAN;
    if (!(largest < INFINITY)) {
        return {0.0F, NAN};
    }
    const float inverse = largest > 0.0F ? most / largest : 0.0F;
    return inverse < INFINITY && inverse > 0.0F ? RoundingScale{inverse, largest / most} : RoundingScale{0.0F, 0.0F};
}

/// Integers as floats, of magnitudes below 2^22.
template <class V>
TMAC_ALWAYS_INLINE typename V::F rounded(typename V::F x, float inverse) {
    const typename V::F magic = V::set1(0x1.8p+23F);  // a sum with it has no fraction
    return V::subtract(V::add(V::multiply(x, V::set1(inverse)), magic), magic);
}

}  // namespace
}  // namespace tmac
