#include "core/packed_weight.h"

#include <cstring>
#include <type_traits>

#include "core/act_groups.h"
#include "core/check.h"

namespace tmac {
namespace {

constexpr int64_t kAlign = 64;

int64_t take(int64_t& at, int64_t bytes) {
    const int64_t begin = at;
    at += (bytes + kAlign - 1) / kAlign * kAlign;
    return begin;
}

struct Fnv1a {
    uint32_t state = 2166136261U;

    template <class T>
    void add(const T& value) {
        static_assert(std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>);
        unsigned char bytes[sizeof(T)];
        std::memcpy(bytes, &value, sizeof(T));
        for (const unsigned char byte : bytes) {
            state = (state ^ byte) * 16777619U;
        }
    }
};

}  // namespace

PackedParts packed_parts(const PackedHeader& header) {
    const QuantSpec& spec = header.spec;
    TMAC_CHECK(static_cast<int>(header.layout) < kNumLayouts, "[packed weight] unknown layout");
    TMAC_CHECK(
        static_cast<int>(header.scale_type) < kNumGroupTypes && static_cast<int>(header.zero_type) < kNumGroupTypes,
        "[packed weight] unknown element type");
    const LayoutShape shape = layout_shape(header.layout, spec.bits);
    TMAC_CHECK(header.n >= 1 && header.n <= kMaxRows, "[packed weight] out_features must be 1 to ", kMaxRows, ", got ",
               header.n);
    TMAC_CHECK(header.k >= 1 && header.k <= kMaxColumns, "[packed weight] in_features must be 1 to ", kMaxColumns,
               ", got ", header.k);
    PackedParts parts{};
    parts.num_groups = num_groups(spec, header.k);
    parts.k_chunk = shape.k_chunk;
    parts.padded_k = padded_columns(spec, header.k, shape.k_chunk);
    const int64_t tiles = (header.n + shape.n_tile - 1) / shape.n_tile;
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    parts.num_super_groups = two_level ? num_super_groups(header.k) : 0;
    const int64_t group_values = tiles * shape.n_tile * parts.num_groups;
    const int64_t super_bytes = tiles * shape.n_tile * parts.num_super_groups * element_bytes(GroupType::f16);
    int64_t at = 0;
    take(at, sizeof(PackedHeader));
    parts.perm = take(at, header.has_perm != 0 ? header.k * 4 : 0);
    parts.scales = take(at, group_values * element_bytes(header.scale_type));
    parts.zeros = take(at, group_values * element_bytes(header.zero_type));
    parts.super_scales = take(at, super_bytes);
    parts.super_offsets = take(at, header.zero_type != GroupType::none ? super_bytes : 0);
    const int64_t chunks = tiles * (parts.padded_k / shape.k_chunk);
    const int64_t plane = header.n * ((header.k + 7) / 8);
    parts.region_stride = shape.chunk_bytes != 0 ? chunks * shape.chunk_bytes : plane;
    parts.last_region = shape.chunk_bytes != 0 ? chunks * shape.last_bytes : plane;
    parts.num_regions = shape.num_regions;
    parts.codes = at;
    at += parts.region_stride * (parts.num_regions - 1) + parts.last_region;
    parts.bytes = (at + kAlign - 1) / kAlign * kAlign;
    return parts;
}

uint32_t header_checksum(const PackedHeader& header) {
    Fnv1a hash;
    hash.add(header.magic);
    hash.add(header.kernel);
    hash.add(header.prompt_kernel);
    hash.add(header.spec.bits);
    hash.add(header.spec.codebook);
    hash.add(header.spec.zero_point);
    hash.add(header.spec.activation);
    hash.add(header.spec.scale_format);
    hash.add(header.spec.fast_aggregation);
    hash.add(header.spec.group_size);
    hash.add(header.spec.fixed_zero);
    hash.add(header.n);
    hash.add(header.k);
    hash.add(header.layout);
    hash.add(header.scale_type);
    hash.add(header.zero_type);
    hash.add(header.has_perm);
    return hash.state;
}

PackedWeight::PackedWeight(const PackedHeader& header, const PackedParts& parts)
    : buffer_(static_cast<size_t>(parts.bytes)) {
    std::memcpy(buffer_.data(), &header, sizeof(header));
}

}  // namespace tmac
