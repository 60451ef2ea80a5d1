#pragma once

// The only header that knows compilers.
//
// TMAC_PAUSE tells the CPU that a loop waits for another one.
// TMAC_UNROLL stands before a loop over an array of registers: only a loop that is gone leaves the array in registers.
// TMAC_NOINLINE keeps an inner loop's registers apart from those of its caller.
// TMAC_KEEP ends a step of such a loop for one register: left alone, gcc computes all products of a step before it adds
// the first, and has no registers left for them.
// TMAC_IN_ORDER computes a vector before whatever follows, TMAC_MASK_IN_ORDER a mask: for loops whose order was
// measured. TMAC_OPAQUE makes the compiler forget what it knows of a pointer: what is read through it is read again.

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#define TMAC_ALWAYS_INLINE __forceinline
#define TMAC_NOINLINE __declspec(noinline)
#define TMAC_UNROLL
#define TMAC_KEEP(vector)
#define TMAC_IN_ORDER(vector) static_cast<void>(vector)
#define TMAC_MASK_IN_ORDER(mask) static_cast<void>(mask)
#define TMAC_OPAQUE(pointer) static_cast<void>(pointer)
#if defined(_M_X64)
#define TMAC_PREFETCH(address) _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0)
#define TMAC_PAUSE() _mm_pause()
#else
#define TMAC_PAUSE() __yield()
#define TMAC_PREFETCH(address) __prefetch(address)
#endif
#else
#define TMAC_ALWAYS_INLINE inline __attribute__((always_inline))
#define TMAC_NOINLINE __attribute__((noinline))
#if defined(__x86_64__)
#define TMAC_KEEP(vector) asm("" : "+x"(vector))
#else
#define TMAC_KEEP(vector) asm("" : "+w"(vector))
#endif
#if defined(__clang__)
#define TMAC_UNROLL _Pragma("clang loop unroll(full)")
#else
#define TMAC_UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(__x86_64__)
#define TMAC_IN_ORDER(vector) __asm__ __volatile__("" : "+v"(vector))
#define TMAC_MASK_IN_ORDER(mask) __asm__ __volatile__("" : "+Yk"(mask))
#endif
#define TMAC_OPAQUE(pointer) __asm__ __volatile__("" : "+r"(pointer))
#define TMAC_PREFETCH(address) __builtin_prefetch(address)
#if defined(__x86_64__) || defined(__i386__)
#define TMAC_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define TMAC_PAUSE() __asm__ __volatile__("isb")  // `yield` is a no-op on most cores
#else
#define TMAC_PAUSE() static_cast<void>(0)
#endif
#endif
