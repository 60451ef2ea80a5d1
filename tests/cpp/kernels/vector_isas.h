#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "core/cpu_features.h"
#include "kernels/registry.h"
#include "random.h"

/// The float operations that this CPU can run, the scalar ones first.
inline std::vector<const tmac::VectorOps*> runnable_vector_ops() {
    std::vector<const tmac::VectorOps*> result;
    for (const char* name : {"scalar", "avx2", "avx512", "neon"}) {
        const tmac::VectorOps* ops = tmac::find_vector_ops(name);
        if (ops != nullptr && (ops->features & ~tmac::cpu_features()) == 0) {
            result.push_back(ops);
        }
    }
    return result;
}

/// The same bits, or both NaN: instruction sets differ in which NaN they give.
inline bool same_bits(float a, float b) {
    return std::memcmp(&a, &b, sizeof(a)) == 0 || (std::isnan(a) && std::isnan(b));
}

/// Index of the first element that differs, or -1.
inline int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
    if (a.size() != b.size()) {
        return 0;
    }
    for (size_t i = 0; i < a.size(); ++i) {
        if (!same_bits(a[i], b[i])) {
            return static_cast<int64_t>(i);
        }
    }
    return -1;
}

/// Floats of all magnitudes, with some of IEEE's special ones.
inline std::vector<float> wild_floats(Random& random, int64_t count) {
    static constexpr float kSpecial[] = {0.0F,       -0.0F,     INFINITY, -INFINITY, NAN,    0x1p-149F, -0x1p-126F,
                                         0x1.fp127F, -0x1p127F, 88.72F,   88.73F,    -86.5F, -86.6F,    0.625F};
    std::vector<float> result = random.floats(count);
    for (float& value : result) {
        value = random.below(8) == 0 ? kSpecial[random.below(sizeof(kSpecial) / sizeof(float))]
                                     : std::ldexp(value, static_cast<int>(random.below(24)) - 12);
    }
    return result;
}
