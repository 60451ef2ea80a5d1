#pragma once

#include <cstdint>
#include <cstring>

#include "core/portable.h"

// Conversions of 16-bit floats, exact or rounded to nearest even, branch-free so that loops over them vectorize. Always
// inlined: kernels may use them without leaving a weak symbol behind.

namespace tmac {

template <class To, class From>
static TMAC_ALWAYS_INLINE To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof(result));
    return result;
}

static TMAC_ALWAYS_INLINE float f16_to_f32(uint16_t half) {
    // Shifted into place, the exponent is too small by 127 - 15 = 112. A denormal half is its mantissa times 2^-24; it
    // never passes through a denormal float, which the CPU may have been told to read as zero.
    const uint32_t shifted = (half & 0x7fffU) << 13;
    const auto denormal = bits_as<uint32_t>(static_cast<float>(static_cast<int32_t>(half & 0x3ffU)) * 0x1p-24F);
    const uint32_t finite = shifted < 0x00800000U ? denormal : shifted + (112U << 23);
    const uint32_t special = shifted | 0x7f800000U;
    const uint32_t magnitude = shifted >= 0x0f800000U ? special : finite;
    return bits_as<float>(magnitude | (static_cast<uint32_t>(half & 0x8000U) << 16));
}

static TMAC_ALWAYS_INLINE uint16_t f32_to_f16(float value) {
    const auto bits = bits_as<uint32_t>(value);
    const uint32_t magnitude = bits & 0x7fffffffU;
    // Adding 2^(e - 10 + 23 - 23) with the magnitude's own exponent e lets the float adder round to 10 mantissa bits;
    // below the smallest normal half (2^-14) the addend stays 2^-1, which rounds to multiples of 2^-24.
    const uint32_t exponent = magnitude & 0x7f800000U;
    const uint32_t floor_exponent = exponent < 0x38800000U ? 0x38800000U : exponent;
    const auto addend = bits_as<float>(floor_exponent + (13U << 23));
    const auto rounded = bits_as<uint32_t>(bits_as<float>(magnitude < 0x47800000U ? magnitude : 0U) + addend);
    // The low bits of `rounded` are the mantissa in half's unit; the exponent field is counted from floor_exponent.
    const uint32_t mantissa = rounded - bits_as<uint32_t>(addend);
    const uint32_t biased = ((floor_exponent - 0x38800000U) >> 13) + mantissa;
    const uint32_t finite = biased < 0x7c00U ? biased : 0x7c00U;
    const uint32_t nan = 0x7e00U;
    const uint32_t special = magnitude > 0x7f800000U ? nan : 0x7c00U;
    const uint32_t result = magnitude < 0x47800000U ? finite : special;
    return static_cast<uint16_t>(result | ((bits >> 16) & 0x8000U));
}

static TMAC_ALWAYS_INLINE float bf16_to_f32(uint16_t half) { return bits_as<float>(static_cast<uint32_t>(half) << 16); }

static TMAC_ALWAYS_INLINE uint16_t f32_to_bf16(float value) {
    const auto bits = bits_as<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40U;
    return static_cast<uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
}

}  // namespace tmac
