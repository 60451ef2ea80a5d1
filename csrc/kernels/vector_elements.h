#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

namespace tmac {
namespace {

template <class V>
void add(float* x, const float* y, int64_t n) {
    for_each_lanes<V>(
        n, [&](int64_t at, const auto& load, const auto& store) { store(x + at, V::add(load(x + at), load(y + at))); });
}

template <class V>
void add_scaled(float* x, float factor, const float* y, int64_t n) {
    const typename V::F factors = V::set1(factor);
    for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
        store(x + at, V::fma(factors, load(y + at), load(x + at)));
    });
}

template <class V>
void scale(float* x, float factor, int64_t n) {
    const typename V::F factors = V::set1(factor);
    for_each_lanes<V>(
        n, [&](int64_t at, const auto& load, const auto& store) { store(x + at, V::multiply(load(x + at), factors)); });
}

/// One function of ActivationFn.
template <class V, ActivationFn Fn>
TMAC_ALWAYS_INLINE typename V::F activation_of(typename V::F x) {
    using F = typename V::F;
    if constexpr (Fn == ActivationFn::silu) {
        return times_sigmoid<V>(x, V::multiply(x, V::set1(-1.0F)));
    } else if constexpr (Fn == ActivationFn::gelu) {
        return gelu_of<V>(x);
    } else if constexpr (Fn == ActivationFn::gelu_tanh) {
        // (1 + tanh(u)) / 2 = sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x^3)
        const F cubic = V::fma(V::multiply(x, x), V::set1(0.044715F), V::set1(1.0F));
        return times_sigmoid<V>(x, V::multiply(V::multiply(x, V::set1(-1.5957691216057308F)), cubic));
    } else {
        const F positive = V::select_less(x, V::set1(0.0F), V::set1(0.0F), x);
        return Fn == ActivationFn::relu ? positive : V::multiply(positive, positive);
    }
}

template <class V, ActivationFn Fn>
TMAC_ALWAYS_INLINE void activate_with(const float* gate, const float* up, int64_t n, float* y) {
    if (up == nullptr) {
        for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
            store(y + at, activation_of<V, Fn>(load(gate + at)));
        });
    } else {
        for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
            store(y + at, V::multiply(activation_of<V, Fn>(load(gate + at)), load(up + at)));
        });
    }
}

template <class V>
void activate(ActivationFn fn, const float* gate, const float* up, int64_t n, float* y) {
    switch (fn) {
        case ActivationFn::silu:
            return activate_with<V, ActivationFn::silu>(gate, up, n, y);
        case ActivationFn::gelu:
            return activate_with<V, ActivationFn::gelu>(gate, up, n, y);
        case ActivationFn::gelu_tanh:
            return activate_with<V, ActivationFn::gelu_tanh>(gate, up, n, y);
        case ActivationFn::relu:
            return activate_with<V, ActivationFn::relu>(gate, up, n, y);
        case ActivationFn::relu2:
            return activate_with<V, ActivationFn::relu2>(gate, up, n, y);
    }
}

template <class V>
void softcap(float* x, float cap, int64_t n) {
    const typename V::F caps = V::set1(cap);
    for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
        store(x + at, V::multiply(caps, tanh_of<V>(V::divide(load(x + at), caps))));
    });
}

template <class V>
void rope(float* x, const float* cos, const float* sin, int64_t half) {
    using F = typename V::F;
    for_each_lanes<V>(half, [&](int64_t at, const auto& load, const auto& store) {
        const F first = load(x + at);
        const F second = load(x + half + at);
        const F cosine = load(cos + at);
        const F sine = load(sin + at);
        store(x + at, V::fma(first, cosine, V::multiply(V::multiply(second, sine), V::set1(-1.0F))));
        store(x + half + at, V::fma(second, cosine, V::multiply(first, sine)));
    });
}

}  // namespace
}  // namespace tmac
