#include "ops/barrier_time.h"

#include <stdexcept>

#include "catch.h"

using namespace tmac;

TEST_CASE("a barrier ends and takes time", "[barrier_time]") {
    CHECK(barrier_seconds(3, 1) > 0);
    CHECK(barrier_seconds(3, 2) > 0);
    CHECK(barrier_seconds(1, 5) > 0);
    CHECK_THROWS_AS(barrier_seconds(0, 2), std::invalid_argument);
    CHECK_THROWS_AS(barrier_seconds(1, -1), std::invalid_argument);
}
