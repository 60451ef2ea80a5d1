#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "core/packed_weight.h"
#include "kernels/kernel.h"
#include "layout/bitplane.h"
#include "layout/ggml_blocks.h"
#include "layout/tiles.h"
#include "ops/group_moves.h"
#include "ops/weight_view.h"

namespace tmac {

/// What is known of a weight before its rows.
struct WeightShape {
    QuantSpec spec;
    int64_t n;
    int64_t k;
    GroupType zero_type;  ///< of zeros or offsets, none for a fixed zero
    const int32_t* perm;  ///< [k]: column j of the rows is the checkpoint's column perm[j]; or null
};

/// Rows as planes or as codes. Group values are [n][num_groups], row-major.
struct WeightRows {
    PlanesView planes;  ///< data is null where there are codes
    CodesView codes;    ///< or the other way round
    const void* scales;
    GroupType scale_type;
    const void* zeros;  ///< zeros or offsets, null for a fixed zero
    GroupType zero_type;
    const uint16_t* super_scales;   ///< f16 [n][num_super_groups], where the scales have two levels
    const uint16_t* super_offsets;  ///< and the same of the offsets

    int32_t bits() const { return codes.data != nullptr ? codes.bits : planes.bits; }
    int64_t n() const { return codes.data != nullptr ? codes.n : planes.n; }
    int64_t k() const { return codes.data != nullptr ? codes.k : planes.k; }
};

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

/// Throws std::invalid_argument unless `perm` holds every number of 0..k-1 once.
void check_permutation(const int32_t* perm, int64_t k);

/// Writes a weight in the memory order of its kernels, some rows at a time, so that no more than these need be held in
/// another form.
class Packer {
public:
    /// `for_prefixes`: as of packed_layout(). Throws std::invalid_argument where the shape has no meaning,
    /// UnsupportedSpec where one of the kernels does not serve the spec.
    Packer(const WeightShape& weight, const KernelPair& kernels, bool for_prefixes = false);

    /// Rows from `first` on, in parallel. May be called from several threads at once for rows that share no 64 rows of
    /// the weight. Throws std::invalid_argument where the parts do not fit the spec, a code is too large, or rows come
    /// twice; the weight is not to be finished then.
    void add(const WeightRows& rows, int64_t first, int num_threads);

    /// The same for `n` rows of whole blocks of a type of ggml that has the spec's f16 values. Throws
    /// std::invalid_argument where a value is NaN or infinite, too.
    void add_blocks(const GgmlBlock& type, const uint8_t* blocks, int64_t n, int64_t first, int num_threads);

    /// Throws std::invalid_argument where rows are missing, and when it is called again.
    PackedWeight finish();

private:
    WeightView view() { return view_in_place(header_, parts_, kernels_, packed_.data()); }
    void mark(int64_t first, int64_t n);
    void write(const WeightRows& rows, Range of_rows, int64_t first);

    PackedHeader header_;
    PackedParts parts_;
    KernelPair kernels_;
    PackedWeight packed_;
    std::vector<ActGroup> act_groups_;
    std::mutex mutex_;
    std::vector<bool> written_;  ///< rows
    bool finished_ = false;
};

/// All rows of a weight at once.
PackedWeight pack(const CanonicalWeight& weight, const KernelPair& kernels, int num_threads, bool for_prefixes = false);

/// Whether f16 or f32 values are neither NaN nor infinite; true of other types.
bool all_finite(const void* values, GroupType type, int64_t count);

/// The inverse; the arrays have the sizes that the view's header gives, `planes` is zeroed. `perm` is null where the
/// weight has none.
void unpack(const WeightView& weight, uint8_t* planes, const GroupArrays& groups, int32_t* perm, int num_threads);

}  // namespace tmac
