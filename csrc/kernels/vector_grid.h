#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

// What a trial of a grid needs to know of a group, in one walk over its weights.

namespace tmac {
namespace {

/// Sums of sixteen columns, as vectors.
template <class V>
struct GridLanes {
    typename V::F error, c, cc, cw;
};

template <class V>
TMAC_ALWAYS_INLINE GridLanes<V> grid_lanes(const GridRounding& r, const float* w, const float* counts) {
    using F = typename V::F;
    const F zero = V::set1(0.0F);
    const F top = V::set1(r.top);
    const F magic = V::set1(0x1.8p+23F);  // a sum with it has no fraction
    const F weight = V::load(w);
    const F count = V::load(counts);
    F near = V::add(V::multiply(weight, V::set1(r.inverse)), V::set1(r.shift));
    near = V::max(near, zero);
    near = V::select_less(near, top, near, top);
    const F code = V::subtract(V::add(near, magic), magic);
    const F stands_for = V::add(V::multiply(V::subtract(code, V::set1(r.subtract)), V::set1(r.scale)), V::set1(r.add));
    const F off = V::subtract(stands_for, weight);
    const F from_zero = V::subtract(code, V::set1(r.from));
    const F c = V::multiply(from_zero, count);
    return {V::multiply(V::multiply(off, off), count), c, V::multiply(from_zero, c), V::multiply(c, weight)};
}

template <class V>
float grid_error(const GridRounding& r, const float* w, const float* counts, int64_t n) {
    typename V::F error = V::set1(0.0F);
    for (int64_t at = 0; at < n; at += kVectorLanes) {
        error = V::add(error, grid_lanes<V>(r, w + at, counts + at).error);
    }
    return V::fold(error);
}

template <class V>
GridSums grid_sums(const GridRounding& r, const float* w, const float* counts, int64_t n) {
    GridSums sums;
    const auto add = [&](const GridLanes<V>& lanes) {
        sums.error += static_cast<double>(V::fold(lanes.error));
        sums.c += static_cast<double>(V::fold(lanes.c));
        sums.cc += static_cast<double>(V::fold(lanes.cc));
        sums.cw += static_cast<double>(V::fold(lanes.cw));
    };
    int64_t at = 0;
    for (; at + 2 * kVectorLanes <= n; at += 2 * kVectorLanes) {
        const GridLanes<V> a = grid_lanes<V>(r, w + at, counts + at);
        const GridLanes<V> b = grid_lanes<V>(r, w + at + kVectorLanes, counts + at + kVectorLanes);
        add({V::add(a.error, b.error), V::add(a.c, b.c), V::add(a.cc, b.cc), V::add(a.cw, b.cw)});
    }
    if (at < n) {
        add(grid_lanes<V>(r, w + at, counts + at));
    }
    return sums;
}

}  // namespace
}  // namespace tmac
