#include "core/quant_spec.h"

#include <cmath>
#include <sstream>

#include "core/check.h"

namespace tmac {
namespace {

constexpr int kLutBits = 4;  ///< wider codes are multiplied, not looked up

}  // namespace

void validate(const QuantSpec& spec) {
    TMAC_CHECK(spec.bits >= 1 && spec.bits <= 8, "[QuantSpec] bits must be 1 to 8, got ", int{spec.bits});
    TMAC_CHECK(spec.group_size == -1 || spec.group_size >= 1,
               "[QuantSpec] group_size must be -1 (whole row) or positive, got ", spec.group_size);
    TMAC_CHECK(spec.codebook <= Codebook::ternary && spec.zero_point <= ZeroPoint::offset &&
                   spec.activation <= Activation::float_exact && spec.scale_format <= ScaleFormat::two_level,
               "[QuantSpec] a field holds no value of its kind");
    TMAC_CHECK(spec.fast_aggregation <= 1, "[QuantSpec] fast_aggregation is 0 or 1, got ", int{spec.fast_aggregation});
    TMAC_CHECK(spec.fast_aggregation == 0 || (spec.activation == Activation::group && spec.bits <= kLutBits),
               "[QuantSpec] fast_aggregation averages table look-ups: it needs activation='group' and at most ",
               kLutBits, " bits, got activation='", name_of(spec.activation), "' and bits=", int{spec.bits});
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    TMAC_CHECK(!two_level || spec.group_size == 16 || spec.group_size == 32,
               "[QuantSpec] scale_format='two_level' needs group_size 16 or 32, got ", spec.group_size);
    TMAC_CHECK(!two_level || spec.zero_point == ZeroPoint::fixed || spec.zero_point == ZeroPoint::offset,
               "[QuantSpec] scale_format='two_level' needs zero_point 'fixed' or 'offset', got '",
               name_of(spec.zero_point), "'");
    TMAC_CHECK(std::isfinite(spec.fixed_zero), "[QuantSpec] fixed_zero must be finite, got ", spec.fixed_zero);
    TMAC_CHECK(spec.codebook != Codebook::ternary || spec.bits == 2, "[QuantSpec] a ternary codebook has bits=2, got ",
               int{spec.bits});
    TMAC_CHECK(spec.codebook != Codebook::ternary || spec.zero_point == ZeroPoint::fixed,
               "[QuantSpec] a ternary codebook has zero_point='fixed'");
}

int64_t num_groups(const QuantSpec& spec, int64_t k) {
    if (spec.group_size == -1 || spec.group_size >= k) {
        return 1;
    }
    return (k + spec.group_size - 1) / spec.group_size;
}

std::string to_string(const QuantSpec& spec) {
    std::ostringstream text;
    text << "QuantSpec(bits=" << int{spec.bits};
    if (spec.codebook == Codebook::ternary) {
        text << ", codebook='ternary'";
    }
    text << ", group_size=" << spec.group_size << ", zero_point='" << name_of(spec.zero_point) << "'";
    if (spec.zero_point == ZeroPoint::fixed) {
        text << ", fixed_zero=" << spec.fixed_zero;
    }
    text << ", activation='" << name_of(spec.activation) << "', scale_format='" << name_of(spec.scale_format) << "'"
         << (spec.fast_aggregation != 0 ? ", fast_aggregation=True)" : ")");
    return text.str();
}

}  // namespace tmac
