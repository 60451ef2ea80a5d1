#include "core/cpu_features.h"

#include <stdexcept>

#include "catch.h"

using namespace tmac;

TEST_CASE("features have distinct bits and names", "[cpu_features]") {
    uint32_t seen = 0;
    for (const FeatureName& feature : feature_names()) {
        CHECK((seen & feature.bit) == 0);
        seen |= feature.bit;
    }
    CHECK((detect_cpu_features() & ~seen) == 0);
}

TEST_CASE("features can be hidden, one by one or several", "[cpu_features]") {
    const uint32_t all = kAvx2 | kFma | kAvx512vbmi | kAvx512vnni;
    CHECK(hide_features(all, "") == all);
    CHECK(hide_features(all, "-avx512vbmi") == (kAvx2 | kFma | kAvx512vnni));
    CHECK(hide_features(all, "-avx512vbmi,-avx512vnni") == (kAvx2 | kFma));
    CHECK(hide_features(kAvx2, "-avx512vbmi") == kAvx2);
}

TEST_CASE("an unknown feature or a missing minus is an error", "[cpu_features]") {
    CHECK_THROWS_WITH(hide_features(kAvx2, "-avx1024"), TMAC_CONTAINS("avx1024"));
    CHECK_THROWS_AS(hide_features(kAvx2, "avx2"), std::invalid_argument);
    CHECK_THROWS_AS(hide_features(kAvx2, "+avx2"), std::invalid_argument);
}

TEST_CASE("what is visible was detected", "[cpu_features]") {
    CHECK((cpu_features() & ~detect_cpu_features()) == 0);
    CHECK_FALSE(cpu_model().empty());
}
