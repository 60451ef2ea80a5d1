#pragma once

#include <cstdint>
#include <vector>

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

/// Memory for the group values of one row.
struct RowGroupValues {
    std::vector<uint8_t> scales;
    std::vector<uint8_t> zeros;
    std::vector<uint16_t> super_scales;
    std::vector<uint16_t> super_offsets;

    explicit RowGroupValues(const WeightView& view);

    GroupArrays arrays();
};

/// Dequantizes rows one at a time, reading no others; for one thread.
class RowDequantizer {
public:
    explicit RowDequantizer(const WeightView& view);

    /// Row `row` of w[n, k] in f32, in the checkpoint's column order: subtract or multiply, then multiply or add, each
    /// rounded.
    void run(int64_t row, float* out);

private:
    const WeightView& weight;
    std::vector<ActGroup> act_groups;
    std::vector<uint8_t> planes;  ///< of the row
    RowGroupValues values;
    std::vector<uint8_t> codes;   ///< [k]
    std::vector<float> permuted;  ///< [k] in the weight's own order, where that is another one
};

/// All rows.
void dequantize(const WeightView& weight, float* out, int num_threads);

}  // namespace tmac
