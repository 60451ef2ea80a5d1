#include "core/act_groups.h"

#include <algorithm>
#include <vector>

#include "catch.h"

using namespace tmac;

namespace {

QuantSpec spec_with(int32_t group_size, Activation activation) {
    QuantSpec spec;
    spec.group_size = group_size;
    spec.activation = activation;
    return spec;
}

/// What every list of act groups must be, whatever the spec.
void check_invariants(const QuantSpec& spec, int64_t k, int32_t k_chunk) {
    const std::vector<ActGroup> groups = make_act_groups(spec, k, k_chunk);
    const int64_t group = spec.group_size == -1 ? k : spec.group_size;
    const int64_t piece = spec.activation == Activation::group ? kActGroupSize : kTokenGroupSize;
    int64_t column = 0;
    int64_t padded = 0;
    for (const ActGroup& act_group : groups) {
        REQUIRE(act_group.k_begin == column);
        REQUIRE(act_group.k_count >= 1);
        REQUIRE(act_group.k_count <= piece);
        REQUIRE(act_group.weight_group == column / group);
        REQUIRE((column + act_group.k_count - 1) / group == act_group.weight_group);
        REQUIRE(act_group.padded_begin == padded);
        REQUIRE(act_group.padded_count % k_chunk == 0);
        REQUIRE(act_group.padded_count >= act_group.k_count);
        REQUIRE(act_group.padded_count - act_group.k_count < k_chunk);
        column += act_group.k_count;
        padded += act_group.padded_count;
    }
    REQUIRE(column == k);
    REQUIRE(padded == padded_columns(spec, k, k_chunk));
}

}  // namespace

TEST_CASE("act groups tile the row, inside weight groups, for any size", "[act_groups]") {
    for (const Activation activation : {Activation::group, Activation::token}) {
        for (const int32_t group_size : {-1, 1, 3, 31, 32, 64, 100, 128, 129, 200, 256, 1000}) {
            for (const int64_t k : {1, 2, 31, 32, 127, 128, 129, 255, 576, 1536, 5000}) {
                for (const int32_t k_chunk : {1, 4, 8, 32}) {
                    CAPTURE(group_size, k, k_chunk);
                    check_invariants(spec_with(group_size, activation), k, k_chunk);
                }
            }
        }
    }
}

TEST_CASE("a group of 200 columns is cut into 128 and 72", "[act_groups]") {
    const std::vector<ActGroup> groups = make_act_groups(spec_with(200, Activation::group), 300, 32);
    REQUIRE(groups.size() == 3);
    CHECK(groups[0].k_count == 128);
    CHECK(groups[1].k_count == 72);
    CHECK(groups[1].padded_count == 96);
    CHECK(groups[2].k_begin == 200);
    CHECK(groups[2].padded_begin == 224);
    CHECK(groups[2].weight_group == 1);
}

TEST_CASE("no column gives no act group", "[act_groups]") {
    CHECK(make_act_groups(spec_with(32, Activation::group), 0, 8).empty());
}
