#pragma once

#include <cstdint>

#include "core/layout.h"
#include "core/portable.h"
#include "core/quant_spec.h"

namespace tmac {

enum class Isa : uint8_t { scalar, avx2, avx512, neon };
enum class Method : uint8_t { lut, mad, float_exact, lut_fast, trit };

inline constexpr int32_t kLutGroup = 4;     ///< columns per table look-up (T-MAC's g)
inline constexpr int32_t kLutEntries = 16;  ///< entries of a table: one per sign pattern of its columns

inline constexpr int32_t kMaxTokens = 128;    ///< that a kernel is given at once
inline constexpr int32_t kMaxLutTokens = 32;  ///< that a look-up is given at once: tables are four bytes a column

/// One pass over a block of rows for up to kMaxTokens tokens. A kernel allocates nothing, starts no thread, keeps
/// no state, and assumes that ops/ has checked everything.
struct QgemmArgs {
    const QuantSpec* spec;
    const uint8_t* codes;  ///< first region
    RegionOffsets regions;
    const void* scales;  ///< [ceil(n / n_tile)][num_groups][n_tile]; planes: [n][num_groups]; in bands: BandPlace
    const void* zeros;   ///< same order, or null
    const uint16_t* super_scales;   ///< f16, same order with num_super_groups; null unless scale_type is i8
    const uint16_t* super_offsets;  ///< the same
    GroupType scale_type;
    GroupType zero_type;
    Layout layout;
    const ActGroup* act_groups;
    int32_t num_act_groups;
    int32_t num_groups;
    int32_t num_super_groups;
    int64_t k;
    int64_t padded_k;         ///< columns after padding every act group to the layout's k_chunk
    const void* act;          ///< [m][padded_k / 4][16] bytes (lut), int8 [m][padded_k] (mad), float [m][padded_k]
    int64_t act_stride;       ///< bytes from one token's `act` to the next (see Kernel::token_block)
    const float* act_scale;   ///< [m][num_act_groups]
    const float* act_sum;     ///< [m][num_act_groups]
    const int32_t* act_isum;  ///< mad: [m][num_act_groups], sum of the int8 activations
    float* y;                 ///< y[token * ldy + row]
    int64_t ldy;
    int64_t n;
    float code_scale = 1.0F;  ///< a code c stands for code_scale * c + code_base: the leading planes of a wider weight.
    float code_base = 0.0F;   ///< act_scale has been multiplied by code_scale already (but in float_exact)
    bool ask_ahead = false;   ///< prefetch codes by hand for any number of tokens: this CPU does not by itself
    int64_t row_begin;        ///< a multiple of the layout's n_tile
    int64_t row_end;          ///< a multiple of n_tile, or n
    int32_t m;
};

/// Encodes one token's activations.
struct PrepareArgs {
    const QuantSpec* spec;
    Layout layout;
    const float* x;  ///< [k], columns already in the weight's order
    int64_t k;
    const ActGroup* act_groups;
    int32_t num_act_groups;
    void* act;
    int64_t act_step;  ///< int8: bytes from four columns to the next four (see Kernel::token_block)
    float* act_scale;  ///< NaN where the group has a NaN or an infinity
    float* act_sum;
    int32_t* act_isum;
};

using QgemmFn = void (*)(const QgemmArgs&);
using PrepareFn = void (*)(const PrepareArgs&);

/// A row of the registry. `name` = <op>_<method>[_w<bits>|_ternary]_<isa>[_<tech>].
struct Kernel {
    const char* name;
    uint8_t bits;
    Codebook codebook;
    uint8_t activations;  ///< bit set of 1 << Activation
    Method method;
    Layout layout;      ///< what a weight is packed into when this kernel decodes it
    LayoutSet layouts;  ///< those that it can read, `layout` among them
    uint32_t features;  ///< CpuFeature bits that must be present
    QgemmFn run;
    PrepareFn prepare;
    /// Tokens whose int8 activations take turns in memory. 0: a token's lie in one piece, `act_stride` apart. Otherwise
    /// tokens_in_block() of them form a block of [padded_k / 4][tokens][4] bytes, so that one pointer serves them all;
    /// a block starts `act_stride` bytes per token before it.
    int32_t token_block = 0;
};

/// How many of `left` tokens the next block takes: blocks of at most `largest`, all about as large.
constexpr int32_t tokens_in_block(int32_t left, int32_t largest) {
    const int32_t blocks = (left + largest - 1) / largest;
    return (left + blocks - 1) / blocks;
}

/// The kernels of one file, best first.
struct KernelTable {
    const Kernel* kernels;
    int32_t count;
};

}  // namespace tmac
