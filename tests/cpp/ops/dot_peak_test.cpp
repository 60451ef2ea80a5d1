#include "ops/dot_peak.h"

#include <stdexcept>

#include "catch.h"
#include "core/cpu_features.h"
#include "kernels/registry.h"

using namespace tmac;

TEST_CASE("every instruction set with kernels has a loop of dot products", "[dot_peak]") {
    for (const RegistryRow& row : registry()) {
        CAPTURE(row.kernel->name);
        const DotPeak* peak = find_dot_peak(name_of(row.isa));
        REQUIRE(peak != nullptr);
        CHECK(peak->isa == row.isa);
        CHECK((peak->features & ~row.kernel->features) == 0);
    }
}

TEST_CASE("the operations grow with the rounds and the sums depend on every round", "[dot_peak]") {
    for (const char* name : {"scalar", "avx2", "avx2_vnni", "avx512", "neon", "neon_dotprod"}) {
        const DotPeak* peak = find_dot_peak(name);
        if (peak == nullptr || (peak->features & ~cpu_features()) != 0) {
            continue;
        }
        CAPTURE(name);
        int32_t one = 1234567;
        int32_t three = one;
        const int64_t operations = peak->run(1, &one);
        CHECK(operations > 0);
        CHECK(peak->run(3, &three) == 3 * operations);
        CHECK(one != three);
        CHECK(dot_peak(name, 1) > 0.0);
        CHECK(dot_peak(name, 2) > 0.0);
    }
}

TEST_CASE("an unknown instruction set and a negative number of threads are refused", "[dot_peak]") {
    CHECK_THROWS_WITH(dot_peak("avx3", 1), TMAC_CONTAINS("avx3"));
    CHECK_THROWS_WITH(dot_peak("scalar", -1), TMAC_CONTAINS("num_threads"));
}
