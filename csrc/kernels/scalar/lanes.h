#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "core/portable.h"

// Sixteen floats as plain numbers: what kernels/vector_math.h asks for.

namespace tmac::scalar {
namespace {

struct Lanes {
    static constexpr int kAccumulators = 4;
    static constexpr int kRowSums = 1;
    static constexpr int kDots = 4;

    struct F {
        float lane[16];
    };

    template <class Of>
    static TMAC_ALWAYS_INLINE F make(const Of& of) {
        F result;
        for (int j = 0; j < 16; ++j) {
            result.lane[j] = of(j);
        }
        return result;
    }

    static TMAC_ALWAYS_INLINE void prefetch(const uint8_t* line) { TMAC_PREFETCH(line); }
    static TMAC_ALWAYS_INLINE F set1(float value) {
        return make([&](int) { return value; });
    }
    static TMAC_ALWAYS_INLINE F load(const float* values) {
        return make([&](int j) { return values[j]; });
    }
    static TMAC_ALWAYS_INLINE F load_f16(const uint16_t* halves) {
        return make([&](int j) { return f16_to_f32(halves[j]); });
    }
    static TMAC_ALWAYS_INLINE F load_bf16(const uint16_t* halves) {
        return make([&](int j) { return bf16_to_f32(halves[j]); });
    }
    static TMAC_ALWAYS_INLINE void store(float* to, const F& a) { std::memcpy(to, a.lane, sizeof(a.lane)); }
    static TMAC_ALWAYS_INLINE void store_f16(uint16_t* to, const F& a) {
        for (int j = 0; j < 16; ++j) {
            to[j] = f32_to_f16(a.lane[j]);
        }
    }

    static TMAC_ALWAYS_INLINE F add(const F& a, const F& b) {
        return make([&](int j) { return a.lane[j] + b.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F subtract(const F& a, const F& b) {
        return make([&](int j) { return a.lane[j] - b.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F multiply(const F& a, const F& b) {
        return make([&](int j) { return a.lane[j] * b.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F divide(const F& a, const F& b) {
        return make([&](int j) { return a.lane[j] / b.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F fma(const F& a, const F& b, const F& c) {
        return make([&](int j) { return std::fma(a.lane[j], b.lane[j], c.lane[j]); });
    }
    static TMAC_ALWAYS_INLINE F max(const F& a, const F& b) {
        return make([&](int j) { return a.lane[j] > b.lane[j] ? a.lane[j] : b.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F abs(const F& a) {
        return make([&](int j) { return std::fabs(a.lane[j]); });
    }
    static TMAC_ALWAYS_INLINE F copy_sign(const F& magnitude, const F& sign) {
        return make([&](int j) { return std::copysign(magnitude.lane[j], sign.lane[j]); });
    }
    static TMAC_ALWAYS_INLINE F shift_to_exponent(const F& a) {
        return make([&](int j) { return bits_as<float>((bits_as<uint32_t>(a.lane[j]) << 23) + 0x3f000000U); });
    }
    static TMAC_ALWAYS_INLINE F select_less(const F& a, const F& b, const F& yes, const F& no) {
        return make([&](int j) { return a.lane[j] < b.lane[j] ? yes.lane[j] : no.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F select_ordered(const F& a, const F& yes, const F& no) {
        return make([&](int j) { return a.lane[j] == a.lane[j] ? yes.lane[j] : no.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE F select_range(const F& inside, const F& outside, int32_t begin, int32_t end) {
        return make([&](int j) { return begin <= j && j < end ? inside.lane[j] : outside.lane[j]; });
    }

    // Multipliers are int16.
    using Bytes = const uint8_t*;
    struct Dots {
        uint32_t lane[16];
    };
    struct Four {
        int16_t of[4];
    };

    static TMAC_ALWAYS_INLINE Bytes load_bytes(const uint8_t* bytes) { return bytes; }
    static TMAC_ALWAYS_INLINE void store_multipliers(uint8_t* to, const F& integers) {
        int16_t sixteen[16];
        for (int j = 0; j < 16; ++j) {
            sixteen[j] = static_cast<int16_t>(integers.lane[j]);
        }
        std::memcpy(to, sixteen, sizeof(sixteen));
    }
    static TMAC_ALWAYS_INLINE Four four(const uint8_t* sixteen, int index) {
        Four result;
        std::memcpy(result.of, sixteen + sizeof(result.of) * static_cast<size_t>(index), sizeof(result.of));
        return result;
    }
    static TMAC_ALWAYS_INLINE Dots no_dots() { return {}; }
    static TMAC_ALWAYS_INLINE Dots add_dots(Dots dots, Bytes bytes, const Four& four) {
        for (int j = 0; j < 16; ++j) {
            int32_t sum = 0;
            for (int i = 0; i < 4; ++i) {
                sum += bytes[4 * j + i] * four.of[i];
            }
            dots.lane[j] += static_cast<uint32_t>(sum);
        }
        return dots;
    }
    static TMAC_ALWAYS_INLINE F dots_less(const Dots& dots, int32_t bias) {
        return make([&](int j) {
            return static_cast<float>(static_cast<int32_t>(dots.lane[j] - static_cast<uint32_t>(bias)));
        });
    }

    // Eight doubles: what kernels/vector_factor.h asks for.
    struct D {
        double lane[8];
    };

    template <class Of>
    static TMAC_ALWAYS_INLINE D make_f64(const Of& of) {
        D result;
        for (int j = 0; j < 8; ++j) {
            result.lane[j] = of(j);
        }
        return result;
    }
    static TMAC_ALWAYS_INLINE D set1_f64(double value) {
        return make_f64([&](int) { return value; });
    }
    static TMAC_ALWAYS_INLINE D load_f64(const double* values) {
        return make_f64([&](int j) { return values[j]; });
    }
    static TMAC_ALWAYS_INLINE void store_f64(double* to, const D& a) { std::memcpy(to, a.lane, sizeof(a.lane)); }
    static TMAC_ALWAYS_INLINE D multiply_f64(const D& a, const D& b) {
        return make_f64([&](int j) { return a.lane[j] * b.lane[j]; });
    }
    static TMAC_ALWAYS_INLINE D less_product_f64(const D& c, const D& a, const D& b) {
        return make_f64([&](int j) { return std::fma(-a.lane[j], b.lane[j], c.lane[j]); });
    }

    static TMAC_ALWAYS_INLINE float fold(F a) {
        for (int width = 8; width >= 1; width /= 2) {
            for (int j = 0; j < width; ++j) {
                a.lane[j] += a.lane[j + width];
            }
        }
        return a.lane[0];
    }
};

}  // namespace
}  // namespace tmac::scalar
