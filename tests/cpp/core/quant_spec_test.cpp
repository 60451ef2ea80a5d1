#include "core/quant_spec.h"

#include <cmath>
#include <limits>
#include <stdexcept>

#include "catch.h"

using namespace tmac;

TEST_CASE("the default spec is valid and prints its fields", "[quant_spec]") {
    const QuantSpec spec;
    REQUIRE_NOTHROW(validate(spec));
    CHECK_THAT(to_string(spec), TMAC_CONTAINS("bits=4"));
    CHECK_THAT(to_string(spec), TMAC_CONTAINS("group_size=128"));
    CHECK_THAT(to_string(spec), TMAC_CONTAINS("zero_point='fixed'"));
}

TEST_CASE("bits are 1 to 8", "[quant_spec]") {
    QuantSpec spec;
    for (int bits = 1; bits <= 8; ++bits) {
        spec.bits = static_cast<uint8_t>(bits);
        CHECK_NOTHROW(validate(spec));
    }
    for (const uint8_t bits : {uint8_t{0}, uint8_t{9}, uint8_t{255}}) {
        spec.bits = bits;
        CHECK_THROWS_AS(validate(spec), std::invalid_argument);
    }
}

TEST_CASE("group_size is -1 or positive", "[quant_spec]") {
    QuantSpec spec;
    for (const int32_t group_size : {-1, 1, 7, 128, std::numeric_limits<int32_t>::max()}) {
        spec.group_size = group_size;
        CHECK_NOTHROW(validate(spec));
    }
    for (const int32_t group_size : {0, -2, -128}) {
        spec.group_size = group_size;
        CHECK_THROWS_WITH(validate(spec), TMAC_CONTAINS("group_size"));
    }
}

TEST_CASE("fixed_zero is finite", "[quant_spec]") {
    QuantSpec spec;
    spec.fixed_zero = std::numeric_limits<float>::quiet_NaN();
    CHECK_THROWS_AS(validate(spec), std::invalid_argument);
    spec.fixed_zero = std::numeric_limits<float>::infinity();
    CHECK_THROWS_AS(validate(spec), std::invalid_argument);
}

TEST_CASE("a ternary codebook has two bits and a fixed zero", "[quant_spec]") {
    QuantSpec spec;
    spec.codebook = Codebook::ternary;
    spec.bits = 2;
    spec.fixed_zero = 1.0F;
    CHECK_NOTHROW(validate(spec));
    CHECK_THAT(to_string(spec), TMAC_CONTAINS("codebook='ternary'"));
    spec.bits = 3;
    CHECK_THROWS_AS(validate(spec), std::invalid_argument);
    spec.bits = 2;
    spec.zero_point = ZeroPoint::offset;
    CHECK_THROWS_AS(validate(spec), std::invalid_argument);
}

TEST_CASE("fast aggregation needs table look-ups", "[quant_spec]") {
    QuantSpec spec;
    CHECK_THAT(to_string(spec), !TMAC_CONTAINS("fast_aggregation"));
    spec.fast_aggregation = 1;
    CHECK_THAT(to_string(spec), TMAC_CONTAINS("fast_aggregation=True)"));
    for (int bits = 1; bits <= 8; ++bits) {
        for (const Activation activation : {Activation::group, Activation::token, Activation::float_exact}) {
            spec.bits = static_cast<uint8_t>(bits);
            spec.activation = activation;
            if (bits <= 4 && activation == Activation::group) {
                CHECK_NOTHROW(validate(spec));
            } else {
                CHECK_THROWS_WITH(validate(spec), TMAC_CONTAINS("fast_aggregation"));
            }
        }
    }
    spec = QuantSpec{};
    spec.fast_aggregation = 2;
    CHECK_THROWS_WITH(validate(spec), TMAC_CONTAINS("fast_aggregation"));
}

TEST_CASE("scales of two levels have groups of 16 or 32 and a fixed zero or offsets", "[quant_spec]") {
    QuantSpec spec;
    spec.scale_format = ScaleFormat::two_level;
    for (const int32_t group_size : {-1, 1, 8, 16, 24, 32, 64, 128, 256}) {
        for (const ZeroPoint zero_point : {ZeroPoint::fixed, ZeroPoint::integer, ZeroPoint::real, ZeroPoint::offset}) {
            spec.group_size = group_size;
            spec.zero_point = zero_point;
            const bool right_size = group_size == 16 || group_size == 32;
            if (right_size && (zero_point == ZeroPoint::fixed || zero_point == ZeroPoint::offset)) {
                CHECK_NOTHROW(validate(spec));
            } else {
                CHECK_THROWS_WITH(validate(spec), TMAC_CONTAINS("two_level"));
            }
        }
    }
}

TEST_CASE("num_groups counts a partial last group", "[quant_spec]") {
    QuantSpec spec;
    spec.group_size = 128;
    CHECK(num_groups(spec, 1) == 1);
    CHECK(num_groups(spec, 128) == 1);
    CHECK(num_groups(spec, 129) == 2);
    CHECK(num_groups(spec, 576) == 5);
    spec.group_size = -1;
    CHECK(num_groups(spec, 576) == 1);
    spec.group_size = std::numeric_limits<int32_t>::max();
    CHECK(num_groups(spec, 576) == 1);
}
