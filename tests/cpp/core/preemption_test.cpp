#include "core/preemption.h"

#include "catch.h"

using namespace tmac;

TEST_CASE("the count of preemptions never goes back", "[preemption]") {
    int64_t before = preemptions();
    CHECK(before >= 0);
    for (int i = 0; i < 1000; ++i) {
        const int64_t now = preemptions();
        REQUIRE(now >= before);
        before = now;
    }
}
