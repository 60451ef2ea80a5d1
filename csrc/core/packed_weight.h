#pragma once

#include <cstdint>

#include "core/huge_buffer.h"
#include "core/layout.h"
#include "core/quant_spec.h"

namespace tmac {

/// Counts up when a byte of any layout moves.
inline constexpr char kPackedMagic[8] = {'T', 'M', 'A', 'C', 'P', 'K', 'W', '3'};

/// The head of a packed weight: everything that its bytes mean. Written by ops/pack, checked whenever bytes come back
/// from Python. Offsets are derived from it, never stored.
struct PackedHeader {
    char magic[8];           ///< kPackedMagic
    char kernel[56];         ///< registry name of the kernel that decodes: generated tokens, a few at a time
    char prompt_kernel[56];  ///< and of the one for prompts, which reads the same layout
    QuantSpec spec;
    int64_t n;
    int64_t k;
    Layout layout;
    GroupType scale_type;
    GroupType zero_type;
    uint8_t has_perm;
    uint32_t checksum;  ///< FNV-1a of the bytes before it
};

/// Where the parts of a packed weight lie, in bytes from its start; every part is 64-byte aligned.
struct PackedParts {
    int64_t perm;  ///< int32 [k], or absent
    int64_t scales;
    int64_t zeros;
    int64_t super_scales;   ///< f16, in the order of the scales; empty unless these have two levels
    int64_t super_offsets;  ///< and of the offsets
    int64_t codes;          ///< the first region; the others follow it, region_stride bytes apart
    int64_t region_stride;  ///< bytes of every region but the last
    int64_t last_region;    ///< bytes of the last
    int32_t num_regions;
    int64_t bytes;
    int32_t k_chunk;  ///< act groups are filled up to a multiple of it
    int64_t padded_k;
    int64_t num_groups;
    int64_t num_super_groups;  ///< 0 unless the scales have two levels
};

/// Limits that keep every size and every int32 sum in range.
inline constexpr int64_t kMaxRows = int64_t{1} << 30;
inline constexpr int64_t kMaxColumns = int64_t{1} << 24;

/// Throws std::invalid_argument where a number of the header is out of range.
PackedParts packed_parts(const PackedHeader& header);

uint32_t header_checksum(const PackedHeader& header);

/// An owning packed weight: one buffer, head first.
class PackedWeight {
public:
    PackedWeight(const PackedHeader& header, const PackedParts& parts);

    const PackedHeader& header() const { return *reinterpret_cast<const PackedHeader*>(buffer_.data()); }
    uint8_t* data() { return buffer_.data(); }
    const uint8_t* data() const { return buffer_.data(); }
    int64_t size() const { return static_cast<int64_t>(buffer_.size()); }

private:
    HugeBuffer buffer_;
};

}  // namespace tmac
