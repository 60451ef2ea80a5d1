#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

namespace tmac {
namespace {

/// The largest lane; -0 counts as 0.
template <class V>
TMAC_ALWAYS_INLINE float largest_lane(typename V::F values) {
    float lanes[kVectorLanes];
    V::store(lanes, values);
    float largest = lanes[0];
    for (int j = 1; j < kVectorLanes; ++j) {
        largest = lanes[j] > largest ? lanes[j] : largest;
    }
    return largest + 0.0F;
}

template <class V>
float max(const float* x, int64_t n) {
    using F = typename V::F;
    F largest = V::set1(-INFINITY);
    F unordered = V::set1(0.0F);
    for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto&) {
        F values = load(x + at);
        if (n - at < kVectorLanes) {
            values = V::select_range(values, V::set1(-INFINITY), 0, static_cast<int32_t>(n - at));
        }
        unordered = V::select_ordered(values, unordered, values);
        largest = V::max(values, largest);
    });
    return V::fold(unordered) == 0.0F ? largest_lane<V>(largest) : NAN;
}

/// Blocks of 256 in sixteen lanes; their sums are added in double, in order.
template <class V>
double sum_exp(const float* x, float subtract, int64_t n) {
    using F = typename V::F;
    constexpr int64_t kBlock = 256;
    const F subtracted = V::set1(subtract);
    double sum = 0.0;
    for (int64_t block = 0; block < n; block += kBlock) {
        const int64_t count = n - block < kBlock ? n - block : kBlock;
        F lanes = V::set1(0.0F);
        for_each_lanes<V>(count, [&](int64_t at, const auto& load, const auto&) {
            F values = exp_of<V>(V::subtract(load(x + block + at), subtracted));
            if (count - at < kVectorLanes) {
                values = V::select_range(values, V::set1(0.0F), 0, static_cast<int32_t>(count - at));
            }
            lanes = V::add(lanes, values);
        });
        sum += static_cast<double>(V::fold(lanes));
    }
    return sum;
}

template <class V>
void exp(const float* x, float subtract, float factor, int64_t n, float* y) {
    const typename V::F subtracted = V::set1(subtract);
    const typename V::F factors = V::set1(factor);
    for_each_lanes<V>(n, [&](int64_t at, const auto& load, const auto& store) {
        store(y + at, exp_of<V>(V::multiply(V::subtract(load(x + at), subtracted), factors)));
    });
}

}  // namespace
}  // namespace tmac
