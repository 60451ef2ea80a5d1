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
    const uint8_t* data;

    const int32_t* perm() const {
        return header.has_perm != 0 ? reinterpret_cast<const int32_t*>(data + parts.perm) : nullptr;
    }
};

/// Throws std::invalid_argument when the bytes are not a packed weight that this CPU can run.
WeightView view_weight(const uint8_t* data, int64_t size);

}  // namespace tmac
