#include "core/cache_size.h"

#include "catch.h"

using namespace tmac;

TEST_CASE("sizes and lists as sysfs writes them", "[cache_size]") {
    CHECK(parse_cache_size("32768K") == 32 << 20);
    CHECK(parse_cache_size("105M") == 105 << 20);
    CHECK(parse_cache_size("512") == 512);
    for (const char* text : {"", "K", "-1K", "none", "99999999999999999999K"}) {
        CHECK(parse_cache_size(text) == 0);
    }
    CHECK(count_cpu_list("0-3,8") == 5);
    CHECK(count_cpu_list("7") == 1);
    CHECK(count_cpu_list("0-7,64-71") == 16);
    for (const char* text : {"", "3-1", "x"}) {
        CHECK(count_cpu_list(text) == 1);
    }
}

TEST_CASE("more threads never have less cache", "[cache_size]") {
    CHECK(last_level_cache_bytes(1) >= 1 << 16);
    CHECK(last_level_cache_bytes(0) == last_level_cache_bytes(1));
    CHECK(last_level_cache_bytes(1000) >= last_level_cache_bytes(1));
}
