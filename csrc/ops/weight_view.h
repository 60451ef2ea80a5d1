#pragma once

#include <cstdint>

#include "core/packed_weight.h"
#include "kernels/registry.h"

namespace tmac {

/// A packed weight whose bytes have been checked: every pointer and offset is inside the buffer, and this CPU can run
/// its kernel.
struct WeightView {
    PackedHeader header;
    PackedParts parts;
    KernelPair kernels;
    const uint8_t* data;                  ///< everything before the codes
    const uint8_t* regions[kMaxRegions];  ///< of the codes, parts.num_regions of them, each in one piece anywhere
    float code_scale = 1.0F;              ///< a code c stands for code_scale * c + code_base: see ops/prefix.h
    float code_base = 0.0F;

    RegionOffsets region_offsets() const;

    const int32_t* perm() const {
        return header.has_perm != 0 ? reinterpret_cast<const int32_t*>(data + parts.perm) : nullptr;
    }
};

/// The view of a packed weight in one piece of memory, without any check.
WeightView view_in_place(const PackedHeader& header, const PackedParts& parts, const KernelPair& kernels,
                         const uint8_t* data);

/// Throws std::invalid_argument when the bytes are not a packed weight that this CPU can run.
WeightView view_weight(const uint8_t* data, int64_t size);

/// The same for the `size` bytes before the codes alone: the regions are null, and are to be set before the view is
/// used.
WeightView view_weight_head(const uint8_t* data, int64_t size);

/// The same for the header alone, which the first of `size` bytes hold: `data` is null too. Whoever sets it then calls
/// check_perm().
WeightView view_header(const uint8_t* data, int64_t size);

/// Throws std::invalid_argument where the weight has a perm that names a column which is not there.
void check_perm(const WeightView& view);

}  // namespace tmac
