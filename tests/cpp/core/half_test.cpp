#include "core/half.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "catch.h"

using namespace tmac;

namespace {

constexpr uint16_t kInfinity = 0x7c00;

/// A half by its definition: (-1)^s 2^(e-15) (1 + f/1024), 2^-14 f/1024 where e is 0.
double half_value(uint16_t half) {
    const int exponent = (half >> 10) & 31;
    const int fraction = half & 1023;
    const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

bool is_nan(uint16_t half) { return (half & 0x7fff) > kInfinity; }

}  // namespace

TEST_CASE("every half becomes its float, and comes back", "[half]") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float value = f16_to_f32(half);
        if (is_nan(half)) {
            wrong += !std::isnan(value) || !is_nan(f32_to_f16(value));
        } else if ((half & 0x7fff) == kInfinity) {
            wrong += !std::isinf(value) || std::signbit(value) != (half >= 0x8000) || f32_to_f16(value) != half;
        } else {
            wrong += value != static_cast<float>(half_value(half)) || std::signbit(value) != (half >= 0x8000);
            wrong += f32_to_f16(value) != half;
        }
    }
    CHECK(wrong == 0);
}

TEST_CASE("between two halves the nearer one is taken, the even one in the middle", "[half]") {
    int wrong = 0;
    for (uint16_t low = 0; low < kInfinity; ++low) {
        const auto high = static_cast<uint16_t>(low + 1);
        const double above = high == kInfinity ? 65536.0 : half_value(high);
        const auto middle = static_cast<float>((half_value(low) + above) / 2);  // exact: one more bit than a half
        const uint16_t even = (low & 1) == 0 ? low : high;
        wrong += f32_to_f16(middle) != even;
        wrong += f32_to_f16(std::nextafter(middle, 0.0F)) != low;
        wrong += f32_to_f16(std::nextafter(middle, 1e30F)) != high;
        wrong += f32_to_f16(-middle) != (even | 0x8000);
    }
    CHECK(wrong == 0);
}

TEST_CASE("floats beyond the halves become infinities and zeros", "[half]") {
    CHECK(f32_to_f16(1e30F) == kInfinity);
    CHECK(f32_to_f16(-std::numeric_limits<float>::max()) == (kInfinity | 0x8000));
    CHECK(f32_to_f16(std::numeric_limits<float>::denorm_min()) == 0);
    CHECK(f32_to_f16(-1e-30F) == 0x8000);
}

TEST_CASE("bf16 keeps the upper half and rounds to even", "[half]") {
    int wrong = 0;
    for (uint32_t bits = 0; bits < 0x10000; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        const float value = bf16_to_f32(half);
        wrong += std::isnan(value) ? !std::isnan(bf16_to_f32(f32_to_bf16(value))) : f32_to_bf16(value) != half;
    }
    CHECK(wrong == 0);
    CHECK(f32_to_bf16(1.0F + 0x1p-8F) == 0x3f80);            // a tie: down to even
    CHECK(f32_to_bf16(1.0F + 0x1p-7F + 0x1p-8F) == 0x3f82);  // a tie: up to even
    CHECK(f32_to_bf16(1.0F + 0x1p-8F + 0x1p-20F) == 0x3f81);
    CHECK(f32_to_bf16(std::numeric_limits<float>::max()) == 0x7f80);
}
