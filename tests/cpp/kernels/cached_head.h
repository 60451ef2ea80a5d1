#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/cache_layout.h"
#include "core/half.h"
#include "kernels/vector_ops.h"

/// Keys and values of one head for tests: as given, as a cache holds them, and in a page's layout.
struct CachedHead {
    tmac::CacheLayout layout;
    int64_t positions;
    std::vector<float> keys;    ///< [positions][head_dim], rounded as the cache rounds them; int8: the integers
    std::vector<float> values;  ///< the same
    std::vector<float> key_scales;
    std::vector<float> value_scales;

    /// One number as the cache holds it.
    static float rounded(tmac::CacheType type, float value, float inverse) {
        switch (type) {
            case tmac::CacheType::f32:
                return value;
            case tmac::CacheType::f16:
                return tmac::f16_to_f32(tmac::f32_to_f16(value));
            case tmac::CacheType::i8:
                break;
        }
        return std::nearbyint(value * inverse);
    }

    /// Rounds a position in place and returns its scale.
    static float round_position(const tmac::CacheLayout& layout, float* x) {
        float largest = 0.0F;
        for (int32_t d = 0; d < layout.head_dim; ++d) {
            largest = std::fmax(largest, std::fabs(x[d]));
        }
        const float inverse = largest > 0.0F ? 127.0F / largest : 0.0F;
        for (int32_t d = 0; d < layout.head_dim; ++d) {
            x[d] = rounded(layout.type, x[d], inverse);
        }
        return largest > 0.0F ? largest / 127.0F : 0.0F;
    }

    CachedHead(const tmac::CacheLayout& cache, int64_t count, const std::vector<float>& k, const std::vector<float>& v)
        : layout(cache), positions(count), keys(k), values(v) {
        for (int64_t p = 0; p < positions; ++p) {
            key_scales.push_back(round_position(layout, keys.data() + p * layout.head_dim));
            value_scales.push_back(round_position(layout, values.data() + p * layout.head_dim));
        }
    }

    /// Positions [first, first + 16 groups) as a piece of `groups` groups at `to`, every other byte of it 0xff: NaN in
    /// floats, and in scales.
    void write(const tmac::VectorOps& ops, const float* k, const float* v, int64_t first, int64_t groups,
               uint8_t* to) const {
        std::memset(to, 0xff, static_cast<size_t>(layout.head_bytes(groups)));
        for (int64_t p = first; p < std::min(positions, first + groups * tmac::kKeyGroup); ++p) {
            const int64_t group = (p - first) / tmac::kKeyGroup;
            const auto lane = static_cast<int32_t>(p % tmac::kKeyGroup);
            const auto scale = [&](int64_t offset) {
                return layout.has_scales() ? reinterpret_cast<float*>(to + offset) + lane : nullptr;
            };
            ops.store_key(layout.type, k + p * layout.head_dim, layout.head_dim, to + layout.key_offset(group), lane,
                          scale(layout.key_scale_offset(group, groups)));
            ops.store_value(layout.type, v + p * layout.head_dim, layout.head_dim,
                            to + layout.value_offset(group, groups), lane,
                            scale(layout.value_scale_offset(group, groups)));
        }
    }
};

/// Numbers as a cache of int8 multiplies them: x is about integer * unit.
struct RoundedNumbers {
    std::vector<int64_t> integers;
    float unit;
};

inline RoundedNumbers round_numbers(const float* x, int64_t count, int32_t most) {
    float largest = 0.0F;
    for (int64_t i = 0; i < count; ++i) {
        largest = std::fmax(largest, std::fabs(x[i]));
    }
    const float inverse = largest > 0.0F ? static_cast<float>(most) / largest : 0.0F;
    RoundedNumbers rounded{{}, largest > 0.0F ? largest / static_cast<float>(most) : 0.0F};
    for (int64_t i = 0; i < count; ++i) {
        rounded.integers.push_back(static_cast<int64_t>(std::nearbyint(x[i] * inverse)));
    }
    return rounded;
}

/// docs/numerics.md, one number at a time. Positions [begin, end) of one span; exp and tanh are those of `ops`.
inline std::vector<float> reference_span(const tmac::VectorOps& ops, const CachedHead& head, const float* query,
                                         int64_t begin, int64_t end, float scale, float softcap) {
    const tmac::CacheLayout& layout = head.layout;
    const int32_t head_dim = layout.head_dim;
    const bool integers = layout.type == tmac::CacheType::i8;
    std::vector<float> partial(static_cast<size_t>(tmac::partial_floats(head_dim)), 0.0F);
    float* tail = partial.data() + layout.padded_dim();
    tail[0] = -INFINITY;
    const RoundedNumbers rounded = round_numbers(query, head_dim, std::min(32512, (1 << 24) / head_dim));
    std::vector<float> scores;
    for (int64_t p = begin; p < end; ++p) {
        const float* key = head.keys.data() + p * head_dim;
        float score = 0.0F;
        int64_t sum = 0;
        for (int32_t d = 0; d < head_dim; ++d) {
            score = std::fma(query[d], key[d], score);
            sum += rounded.integers[static_cast<size_t>(d)] * static_cast<int64_t>(integers ? key[d] : 0.0F);
        }
        if (integers) {
            score = static_cast<float>(sum) * head.key_scales[static_cast<size_t>(p)];
        }
        score *= integers ? rounded.unit * scale : scale;
        if (softcap != 0.0F) {
            ops.softcap(&score, softcap, 1);
        }
        scores.push_back(score);
        tail[0] = std::fmax(tail[0], score);
    }
    ops.exp(scores.data(), tail[0], 1.0F, end - begin, scores.data());
    float lanes[16] = {};
    for (int64_t p = begin; p < end; ++p) {
        float& weight = scores[static_cast<size_t>(p - begin)];
        lanes[p % 16] += weight;
        weight *= integers ? head.value_scales[static_cast<size_t>(p)] : 1.0F;
        for (int32_t d = 0; d < head_dim; ++d) {
            float& sum = partial[static_cast<size_t>(d)];
            sum = std::fma(weight, head.values[static_cast<size_t>(p * head_dim + d)], sum);
        }
    }
    if (integers) {
        const RoundedNumbers weights = round_numbers(scores.data(), end - begin, 32512);
        for (int32_t d = 0; d < head_dim; ++d) {
            int64_t sum = 0;
            for (int64_t p = begin; p < end; ++p) {
                sum += weights.integers[static_cast<size_t>(p - begin)] *
                       static_cast<int64_t>(head.values[static_cast<size_t>(p * head_dim + d)]);
            }
            partial[static_cast<size_t>(d)] = static_cast<float>(sum) * weights.unit;
        }
    }
    for (int width = 8; width >= 1; width /= 2) {
        for (int j = 0; j < width; ++j) {
            lanes[j] += lanes[j + width];
        }
    }
    tail[1] = lanes[0];
    return partial;
}
