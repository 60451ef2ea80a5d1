#pragma once

#include <cstdint>
#include <string>

namespace tmac {

enum class Codebook : uint8_t { uniform, ternary };
enum class ZeroPoint : uint8_t { fixed, integer, real, offset };
enum class Activation : uint8_t { group, token, float_exact };
enum class ScaleFormat : uint8_t { f16, f32, two_level };

/// What the codes of a weight mean. Read once from the checkpoint, never re-derived.
///
///     w[n, k] = (code[n, k] - zero[n, k / group_size]) * scale[n, k / group_size]
///     w[n, k] =  code[n, k] * scale[n, k / group_size] + offset[n, k / group_size]     (ZeroPoint::offset)
///
/// A ternary weight has bits = 2 and the codes 0, 1, 2 for -1, 0, 1. ScaleFormat::two_level (docs/format.md): a scale
/// is an int8 sub-scale times the f16 super-scale of 256 columns, an offset minus the product of two such.
struct QuantSpec {
    uint8_t bits = 4;
    Codebook codebook = Codebook::uniform;
    ZeroPoint zero_point = ZeroPoint::fixed;
    Activation activation = Activation::group;
    ScaleFormat scale_format = ScaleFormat::f16;
    uint8_t fast_aggregation = 0;  ///< 1: look-ups are averaged, not summed (docs/numerics.md, class `lut_fast`)
    int32_t group_size = 128;      ///< -1: one group per row
    float fixed_zero = 8.0F;       ///< the zero of ZeroPoint::fixed

    friend bool operator==(const QuantSpec&, const QuantSpec&) = default;
};

/// The names that Python, checkpoints and messages use, in the order of the enumerators.
inline constexpr const char* kCodebookNames[] = {"uniform", "ternary"};
inline constexpr const char* kZeroPointNames[] = {"fixed", "integer", "real", "offset"};
inline constexpr const char* kActivationNames[] = {"group", "token", "float"};
inline constexpr const char* kScaleFormatNames[] = {"f16", "f32", "two_level"};

constexpr const char* name_of(Codebook value) { return kCodebookNames[static_cast<int>(value)]; }
constexpr const char* name_of(ZeroPoint value) { return kZeroPointNames[static_cast<int>(value)]; }
constexpr const char* name_of(Activation value) { return kActivationNames[static_cast<int>(value)]; }
constexpr const char* name_of(ScaleFormat value) { return kScaleFormatNames[static_cast<int>(value)]; }

/// Throws std::invalid_argument when `spec` has no meaning. A valid spec may still be one that no kernel serves.
void validate(const QuantSpec& spec);

/// Number of weight groups in a row of `k` columns; the last group may be partial.
int64_t num_groups(const QuantSpec& spec, int64_t k);

/// `QuantSpec(bits=4, group_size=128, ...)`, for messages.
std::string to_string(const QuantSpec& spec);

}  // namespace tmac
