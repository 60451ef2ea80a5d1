#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"
#include "kernels/vector_rounding.h"

// Writing a position's key and value into their groups.

namespace tmac {
namespace {

/// Calls put(at, lanes, count) for every sixteen columns of [0, head_dim), as elements of the cache; lanes past `count`
/// are zero.
template <class V, class Put>
TMAC_ALWAYS_INLINE void for_each_element(CacheType type, const float* x, int32_t head_dim, float* scale,
                                         const Put& put) {
    using F = typename V::F;
    const RoundingScale scales = type == CacheType::i8
                                     ? rounding_scale<V>(head_dim, 127.0F, sixteens_of<V>(x, head_dim))
                                     : RoundingScale{1.0F, 1.0F};
    if (type == CacheType::i8) {
        *scale = scales.scale;
    }
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
            float integers[kVectorLanes] = {};
            uint8_t lanes[kVectorLanes];
            if (scales.inverse != 0.0F) {
                V::store(integers, rounded<V>(values, scales.inverse));
            }
            for (int j = 0; j < kVectorLanes; ++j) {
                lanes[j] = static_cast<uint8_t>(static_cast<int32_t>(integers[j]) + 128);
            }
            put(at, lanes, count);
        }
    });
}

template <class V>
void store_key(CacheType type, const float* k, int32_t head_dim, uint8_t* group, int32_t lane, float* scale) {
    const CacheLayout layout{type, head_dim};
    for_each_element<V>(type, k, head_dim, scale, [&]<class Element>(int64_t at, const Element* lanes, int64_t count) {
        for (int64_t j = 0; j < count; ++j) {
            std::memcpy(group + layout.key_element(at + j, lane), lanes + j, sizeof(Element));
        }
    });
}

template <class V>
void store_value(CacheType type, const float* v, int32_t head_dim, uint8_t* group, int32_t lane, float* scale) {
    const CacheLayout layout{type, head_dim};
    // Columns past the end, which load as zero, are written with the others.
    for_each_element<V>(type, v, head_dim, scale, [&]<class Element>(int64_t at, const Element* lanes, int64_t) {
        if constexpr (sizeof(Element) > 1) {
            std::memcpy(group + layout.value_element(at, lane), lanes, kVectorLanes * sizeof(Element));
        } else {
            for (int64_t j = 0; j < kVectorLanes; ++j) {
                group[layout.value_element(at + j, lane)] = lanes[j];
            }
        }
    });
}

}  // namespace
}  // namespace tmac
