#pragma once

// The only header that knows compilers.

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define TMAC_ALWAYS_INLINE __forceinline
#if defined(_M_X64)
#define TMAC_PREFETCH(address) _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0)
#else
#define TMAC_PREFETCH(address) __prefetch(address)
#endif
#else
#define TMAC_ALWAYS_INLINE inline __attribute__((always_inline))
#define TMAC_PREFETCH(address) __builtin_prefetch(address)
#endif
