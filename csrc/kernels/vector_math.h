#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/portable.h"

// Float math on sixteen lanes, written once: an instruction set gives `V`, its lanes.h, and every one computes the same
// bits (docs/numerics.md). What `V` has:
//
//     F                                        sixteen floats
//     kAccumulators                            how many F of sums the registers hold beside what attention multiplies
//     kRowSums                                 the same beside what float_rows multiplies
//     prefetch(const uint8_t*)                 asks for a line that is wanted a few thousand cycles later
//     set1(float), load(const float*), load_f16(const uint16_t*), load_bf16(const uint16_t*)
//     store(float*, F), store_f16(uint16_t*, F) rounded to nearest even
//     add, subtract, multiply, divide, fma(a, b, c) = a * b + c, abs, copy_sign(magnitude, sign)
//     max(a, b) = a > b ? a : b                so b where one is NaN
//     shift_to_exponent(a)                     the bits of a, shifted left by 23, plus those of 0.5
//     select_less(a, b, yes, no)               a < b ? yes : no
//     select_ordered(a, yes, no)               a is no NaN ? yes : no
//     select_range(inside, outside, begin, end) lanes [begin, end) from `inside`
//     fold(F)                                  the sum: lane[j] + lane[j + 8] for j < 8, then 4, 2, 1
//
// Everything stands in an anonymous namespace, as in kernels/shared.h: each object has its own copy.

namespace tmac {
namespace {

inline constexpr int32_t kVectorLanes = 16;

/// The first `count` lanes from memory, zero in the others.
template <class V>
TMAC_ALWAYS_INLINE typename V::F load_some(const float* values, int64_t count) {
    float lanes[kVectorLanes] = {};
    std::memcpy(lanes, values, static_cast<size_t>(count) * sizeof(float));
    return V::load(lanes);
}

template <class V>
TMAC_ALWAYS_INLINE void store_some(float* to, int64_t count, typename V::F values) {
    float lanes[kVectorLanes];
    V::store(lanes, values);
    std::memcpy(to, lanes, static_cast<size_t>(count) * sizeof(float));
}

/// Calls body(at, load, store) for every sixteen columns of [0, n): load(pointer) and store(pointer, F) take the
/// columns that there are.
template <class V, class Body>
TMAC_ALWAYS_INLINE void for_each_lanes(int64_t n, const Body& body) {
    int64_t at = 0;
    for (; at + kVectorLanes <= n; at += kVectorLanes) {
        body(
            at, [](const float* from) { return V::load(from); },
            [](float* to, typename V::F values) { V::store(to, values); });
    }
    if (at < n) {
        const int64_t left = n - at;
        body(
            at, [left](const float* from) { return load_some<V>(from, left); },
            [left](float* to, typename V::F values) { store_some<V>(to, left, values); });
    }
}

/// Calls body.template operator()<Size>(at) over [0, count): as many pieces of the first size as fit, then of the next;
/// the last size is 1.
template <int... Sizes, class Body>
TMAC_ALWAYS_INLINE void for_each_piece(int64_t count, const Body& body) {
    int64_t at = 0;
    const auto pieces = [&]<int Size>() {
        for (; at + Size <= count; at += Size) {
            body.template operator()<Size>(at);
        }
    };
    (pieces.template operator()<Sizes>(), ...);
}

inline constexpr float kLowestExp = -86.5F;  ///< exp is 0 below: 2^-125 is the least power that it multiplies with
inline constexpr float kHighestExp = 0x1.62e42ep+6F;  ///< exp is infinite above

/// exp(x) for x <= kHighestExp, and NaN for NaN: x = n ln 2 + r, exp(x) = 2^(n - 1) * (2 exp(r)), |r| <= ln 2 / 2. The
/// sum with 1.5 * 2^23 rounds to n, which then stands in its low bits. Relative error below 1.5e-7.
template <class V>
TMAC_ALWAYS_INLINE typename V::F exp_bounded(typename V::F x) {
    using F = typename V::F;
    const F magic = V::set1(0x1.8p+23F);
    const F shifted = V::fma(x, V::set1(0x1.715476p+0F), magic);  // 1 / ln 2
    const F n = V::subtract(shifted, magic);
    F r = V::fma(n, V::set1(-0x1.62e43p-1F), x);  // ln 2 in two parts
    r = V::fma(n, V::set1(0x1.05c61p-29F), r);
    F p = V::set1(0x1.6a23ccp-9F);
    p = V::fma(p, r, V::set1(0x1.123a2p-6F));
    p = V::fma(p, r, V::set1(0x1.5558f2p-4F));
    p = V::fma(p, r, V::set1(0x1.555492p-2F));
    p = V::fma(p, r, V::set1(0x1.fffffcp-1F));
    p = V::fma(p, r, V::set1(2.0F));
    p = V::fma(p, r, V::set1(2.0F));
    const F value = V::multiply(p, V::shift_to_exponent(shifted));
    return V::select_less(x, V::set1(kLowestExp), V::set1(0.0F), value);
}

template <class V>
TMAC_ALWAYS_INLINE typename V::F exp_of(typename V::F x) {
    return V::select_less(V::set1(kHighestExp), x, V::set1(INFINITY), exp_bounded<V>(x));
}

/// tanh(x): an odd polynomial near 0, else from exp, without its sign. Relative error below 2e-7.
template <class V>
TMAC_ALWAYS_INLINE typename V::F tanh_of(typename V::F x) {
    using F = typename V::F;
    const F magnitude = V::abs(x);
    const F square = V::multiply(x, x);
    F p = V::set1(-0x1.75e1dcp-8F);
    p = V::fma(p, square, V::set1(0x1.52269ep-6F));
    p = V::fma(p, square, V::set1(-0x1.b83c5ap-5F));
    p = V::fma(p, square, V::set1(0x1.110726p-3F));
    p = V::fma(p, square, V::set1(-0x1.555532p-2F));
    const F near = V::fma(V::multiply(p, square), x, x);
    const F grown = exp_of<V>(V::add(magnitude, magnitude));
    const F far = V::subtract(V::set1(1.0F), V::divide(V::set1(2.0F), V::add(grown, V::set1(1.0F))));
    return V::select_less(magnitude, V::set1(0.625F), near, V::copy_sign(far, x));
}

/// x * sigmoid(z) = x / (1 + exp(-z)).
template <class V>
TMAC_ALWAYS_INLINE typename V::F times_sigmoid(typename V::F x, typename V::F minus_z) {
    return V::divide(x, V::add(V::set1(1.0F), exp_of<V>(minus_z)));
}

/// x * P(N < x) of the normal distribution. The tail P(N < -a) is exp(-a^2 / 2) * R(1 / (1 + 0.3 a)) with a polynomial
/// R; what a^2 / 2 loses to rounding is put back; from a = 14 on the tail is 0. Relative error below 5e-7 down to x =
/// -12.
template <class V>
TMAC_ALWAYS_INLINE typename V::F gelu_of(typename V::F x) {
    using F = typename V::F;
    const F magnitude = V::abs(x);
    const F a = V::select_less(V::set1(14.0F), magnitude, V::set1(14.0F), magnitude);
    const F t = V::divide(V::set1(1.0F), V::fma(a, V::set1(0.3F), V::set1(1.0F)));
    F r = V::set1(0x1.39bed2p-5F);
    r = V::fma(r, t, V::set1(-0x1.59a96p-3F));
    r = V::fma(r, t, V::set1(0x1.d2a8eap-3F));
    r = V::fma(r, t, V::set1(-0x1.359ee6p-4F));
    r = V::fma(r, t, V::set1(0x1.229d62p-3F));
    r = V::fma(r, t, V::set1(0x1.84eeb4p-4F));
    r = V::fma(r, t, V::set1(0x1.f319e6p-4F));
    r = V::fma(r, t, V::set1(0x1.e9762cp-4F));
    r = V::fma(r, t, V::set1(0x1.ba717ep-18F));
    const F half = V::multiply(a, V::set1(-0.5F));
    const F exponent = V::multiply(half, a);
    const F lost = V::fma(half, a, V::multiply(exponent, V::set1(-1.0F)));
    F weight = exp_bounded<V>(exponent);
    weight = V::fma(weight, lost, weight);
    const F tail = V::multiply(V::multiply(a, weight), r);  // a * P(N < -a)
    const F minus_tail = V::multiply(tail, V::set1(-1.0F));
    return V::select_less(x, V::set1(0.0F), minus_tail, V::subtract(x, tail));
}

}  // namespace
}  // namespace tmac
