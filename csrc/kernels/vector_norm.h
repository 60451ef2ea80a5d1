#pragma once

#include <cmath>

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

namespace tmac {
namespace {

/// The sum of term(at, load) over [0, n) in 64 lanes, lane j taking columns j, j + 64, ...: four sums of sixteen lanes,
/// so that none waits for itself. accumulate(sum, at, load) adds sixteen columns to `sum`.
template <class V, class Accumulate>
TMAC_ALWAYS_INLINE float sum_columns(int64_t n, const Accumulate& accumulate) {
    using F = typename V::F;
    constexpr int kSums = 4;
    F sums[kSums] = {V::set1(0.0F), V::set1(0.0F), V::set1(0.0F), V::set1(0.0F)};
    const auto whole = [](const float* from) { return V::load(from); };
    int64_t at = 0;
    for (; at + kSums * kVectorLanes <= n; at += kSums * kVectorLanes) {
        TMAC_UNROLL
        for (int i = 0; i < kSums; ++i) {
            sums[i] = accumulate(sums[i], at + i * kVectorLanes, whole);
        }
    }
    for (int i = 0; at < n; ++i, at += kVectorLanes) {
        const int64_t left = n - at;
        if (left >= kVectorLanes) {
            sums[i] = accumulate(sums[i], at, whole);
        } else {
            sums[i] = accumulate(sums[i], at, [left](const float* from) { return load_some<V>(from, left); });
        }
    }
    return V::fold(V::add(V::add(sums[0], sums[2]), V::add(sums[1], sums[3])));
}

template <class V>
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
    using F = typename V::F;
    const float sum = sum_columns<V>(n, [x](F lanes, int64_t at, const auto& load) {
        const F values = load(x + at);
        return V::fma(values, values, lanes);
    });
    const F factor = V::set1(1.0F / std::sqrt(sum / static_cast<float>(n) + eps));
    for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
        const F scaled = V::multiply(load(x + at), factor);
        store(y + at, weight == nullptr ? scaled : V::multiply(scaled, load(weight + at)));
    });
}

template <class V>
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) {
    using F = typename V::F;
    const float sum =
        sum_columns<V>(n, [x](F lanes, int64_t at, const auto& load) { return V::add(lanes, load(x + at)); });
    const F mean = V::set1(sum / static_cast<float>(n));
    float squares = 0.0F;
    {
        const int64_t whole = n / kVectorLanes * kVectorLanes;
        squares = sum_columns<V>(n, [&](F lanes, int64_t at, const auto& load) {
            F apart = V::subtract(load(x + at), mean);
            if (at == whole) {  // columns past the end are no -mean
                apart = V::select_range(apart, V::set1(0.0F), 0, static_cast<int32_t>(n - whole));
            }
            return V::fma(apart, apart, lanes);
        });
    }
    const F factor = V::set1(1.0F / std::sqrt(squares / static_cast<float>(n) + eps));
    for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
        F values = V::multiply(V::subtract(load(x + at), mean), factor);
        if (weight != nullptr) {
            values = V::multiply(values, load(weight + at));
        }
        store(y + at, bias == nullptr ? values : V::add(values, load(bias + at)));
    });
}

}  // namespace
}  // namespace tmac
