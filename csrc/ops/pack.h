#pragma once

#include <cstdint>

#include "core/packed_weight.h"
#include "kernels/kernel.h"
#include "layout/bitplane.h"
#include "ops/weight_view.h"

namespace tmac {

/// A weight as the file format has it. Group values are [n][num_groups], row-major.
struct CanonicalWeight {
    QuantSpec spec;
    PlanesView planes;
    const void* scales;
    GroupType scale_type;
    const void* zeros;  ///< zeros or offsets, null for a fixed zero
    GroupType zero_type;
    const int32_t* perm;  ///< [k]: column j of the planes is the checkpoint's column perm[j]; or null
    const uint16_t* super_scales = nullptr;   ///< f16 [n][num_super_groups], where the scales have two levels
    const uint16_t* super_offsets = nullptr;  ///< and the same of the offsets
};

/// Canonical group values that `unpack` writes, in the types of the weight's header; null where it has none.
struct GroupArrays {
    void* scales;
    void* zeros;
    uint16_t* super_scales = nullptr;
    uint16_t* super_offsets = nullptr;
};

/// Throws std::invalid_argument unless `perm` holds every number of 0..k-1 once.
void check_permutation(const int32_t* perm, int64_t k);

/// Canonical planes to the memory order of `kernels`, rows in parallel. Throws std::invalid_argument where the parts do
/// not fit the spec, UnsupportedSpec where one of the kernels does not serve it.
PackedWeight pack(const CanonicalWeight& weight, const KernelPair& kernels, int num_threads);

/// The inverse; the arrays have the sizes that the view's header gives, `planes` is zeroed. `perm` is null where the
/// weight has none.
void unpack(const WeightView& weight, uint8_t* planes, const GroupArrays& groups, int32_t* perm, int num_threads);

/// w[n, k] in f32, in the checkpoint's column order: subtract or multiply, then multiply or add, each rounded.
void dequantize(const WeightView& weight, float* out, int num_threads);

}  // namespace tmac
