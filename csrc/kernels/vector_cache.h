#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"
#include "kernels/vector_softmax.h"

// Writing a position's key and value into their groups.

namespace tmac {
namespace {

/// How the elements of a position become int8.
struct CacheScale {
    float inverse;  ///< q = rint(x * inverse)
    float scale;    ///< x is about q * scale
};

/// Where an element is no number or infinite, the scale is NaN: a result that reads the position shows it.
template <class V>
TMAC_ALWAYS_INLINE CacheScale cache_scale_of(const float* x, int32_t head_dim) {
    using F = typename V::F;
    F largest = V::set1(0.0F);
    F unordered = V::set1(0.0F);
    for_each_lanes<V>(head_dim, [&](int64_t at, const auto& load, const auto&) {
        const F values = V::abs(load(x + at));
        unordered = V::select_ordered(values, unordered, values);
        largest = V::max(values, largest);
    });
    const float magnitude = V::fold(unordered) == 0.0F ? largest_lane<V>(largest) : NAN;
    if (!(magnitude < INFINITY)) {
        return {0.0F, NAN};
    }
    const float inverse = magnitude > 0.0F ? 127.0F / magnitude : 0.0F;
    return inverse < INFINITY && inverse > 0.0F ? CacheScale{inverse, magnitude / 127.0F} : CacheScale{0.0F, 0.0F};
}

/// Calls put(at, element) for every column of [0, head_dim), as elements of the cache.
template <class V, class Put>
TMAC_ALWAYS_INLINE void for_each_element(CacheType type, const float* x, int32_t head_dim, float* scale,
                                         const Put& put) {
    using F = typename V::F;
    const CacheScale scales = type == CacheType::i8 ? cache_scale_of<V>(x, head_dim) : CacheScale{1.0F, 1.0F};
    if (type == CacheType::i8) {
        *scale = scales.scale;
    }
    const F magic = V::set1(0x1.8p+23F);  // the sum's last bits are the integer
    for_each_lanes<V>(head_dim, [&](int64_t at, const auto& load, const auto&) {
        const int64_t count = head_dim - at < kVectorLanes ? head_dim - at : kVectorLanes;
        const F values = load(x + at);
        if (type == CacheType::f32) {
            float lanes[kVectorLanes];
            V::store(lanes, values);
            put(at, lanes, count);
        } else if (type == CacheType::f16) {
            uint16_t lanes[kVectorLanes];
            V::store_f16(lanes, values);
            put(at, lanes, count);
        } else {
            float sums[kVectorLanes];
            int8_t lanes[kVectorLanes];
            V::store(sums, V::add(V::multiply(values, V::set1(scales.inverse)), magic));
            for (int j = 0; j < kVectorLanes; ++j) {
                lanes[j] = static_cast<int8_t>(bits_as<int32_t>(sums[j]) & 0xff);
            }
            put(at, lanes, count);
        }
    });
}

template <class V>
void store_key(CacheType type, const float* k, int32_t head_dim, uint8_t* group, int32_t lane, float* scale) {
    for_each_element<V>(type, k, head_dim, scale, [&]<class Element>(int64_t at, const Element* lanes, int64_t count) {
        Element* column = reinterpret_cast<Element*>(group) + at * kKeyGroup + lane;
        for (int64_t j = 0; j < count; ++j) {
            column[j * kKeyGroup] = lanes[j];
        }
    });
}

template <class V>
void store_value(CacheType type, const float* v, int32_t head_dim, uint8_t* group, int32_t lane, float* scale) {
    const auto padded_dim = static_cast<int32_t>(round_up(head_dim, kKeyGroup));
    for_each_element<V>(type, v, head_dim, scale, [&]<class Element>(int64_t at, const Element* lanes, int64_t) {
        // Columns past the end, which load as zero, are written with the others.
        std::memcpy(reinterpret_cast<Element*>(group) + int64_t{lane} * padded_dim + at, lanes,
                    kVectorLanes * sizeof(Element));
    });
}

}  // namespace
}  // namespace tmac
