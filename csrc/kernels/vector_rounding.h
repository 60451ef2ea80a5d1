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

/// Reads x[0, n) in sixteens: zero past the end.
template <class V>
TMAC_ALWAYS_INLINE auto sixteens_of(const float* x, int32_t n) {
    return [x, n](int32_t at) {
        const int32_t left = n - at;
        return left >= kVectorLanes ? V::load(x + at) : load_some<V>(x + at, left);
    };
}

/// So that the largest magnitude of `count` numbers, read by load(at) in sixteens, becomes `most`. A NaN or infinity
/// among them makes the scale NaN: a result that reads the numbers shows it. Magnitudes too small to be told apart
/// become 0.
template <class V, class Load>
TMAC_ALWAYS_INLINE RoundingScale rounding_scale(int32_t count, float most, const Load& load) {
    using F = typename V::F;
    F magnitudes = V::set1(0.0F);
    F unordered = V::set1(0.0F);
    for (int32_t at = 0; at < count; at += kVectorLanes) {
        const F magnitude = V::abs(load(at));
        unordered = V::select_ordered(magnitude, unordered, magnitude);
        magnitudes = V::max(magnitude, magnitudes);
    }
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
