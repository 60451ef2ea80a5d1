#pragma once

// The only header that knows compilers.

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define TMAC_RESTRICT __restrict
#define TMAC_ALWAYS_INLINE __forceinline
#else
#define TMAC_RESTRICT __restrict__
#define TMAC_ALWAYS_INLINE inline __attribute__((always_inline))
#endif
