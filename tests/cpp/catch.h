#pragma once

// The include switch between Catch2 2 and 3.

#if TMAC_CATCH_VERSION >= 3
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
using Catch::Approx;
#define TMAC_CONTAINS(text) Catch::Matchers::ContainsSubstring(text)
#else
#include <catch2/catch.hpp>
#define TMAC_CONTAINS(text) Catch::Matchers::Contains(text)
#endif
