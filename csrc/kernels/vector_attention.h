#pragma once

#include "kernels/vector_attention_floats.h"
#include "kernels/vector_attention_i8.h"

// Attention over one span of a cache, and what becomes of the partial results.

namespace tmac {
namespace {

template <class V>
void attend(const AttendArgs& args) {
    switch (args.type) {
        case CacheType::f32:
            return attend_floats<V, CacheType::f32>(args);
        case CacheType::f16:
            return attend_floats<V, CacheType::f16>(args);
        case CacheType::i8:
            return attend_i8<V>(args);
    }
}

template <class V>
void merge(const float* from, float* into, int32_t head_dim) {
    using F = typename V::F;
    const int64_t padded_dim = round_up(head_dim, kKeyGroup);
    const float* from_tail = from + padded_dim;  // the largest score, the sum
    float* into_tail = into + padded_dim;
    const auto empty = [](const float* tail) { return tail[0] == -INFINITY && tail[1] == 0.0F; };
    if (empty(from_tail)) {
        return;
    }
    if (empty(into_tail)) {
        std::memcpy(into, from, static_cast<size_t>(padded_dim + 2) * sizeof(float));
        return;
    }
    const float largest = into_tail[0] > from_tail[0] ? into_tail[0] : from_tail[0];
    const F into_factor = exp_bounded<V>(V::set1(into_tail[0] - largest));
    const F from_factor = exp_bounded<V>(V::set1(from_tail[0] - largest));
    const auto merged = [&](F before, F after) { return V::fma(after, from_factor, V::multiply(before, into_factor)); };
    for (int64_t at = 0; at < padded_dim; at += kVectorLanes) {
        V::store(into + at, merged(V::load(into + at), V::load(from + at)));
    }
    store_some<V>(into_tail + 1, 1, merged(V::set1(into_tail[1]), V::set1(from_tail[1])));
    into_tail[0] = largest;
}

template <class V>
void finish(const float* partial, int32_t head_dim, float* y) {
    const typename V::F sum = V::set1(partial[round_up(head_dim, kKeyGroup) + 1]);
    for_each_lanes<V>(head_dim, [&](int64_t at, const auto& load, const auto& store) {
        store(y + at, V::divide(load(partial + at), sum));
    });
}

}  // namespace
}  // namespace tmac
