#include "ops/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/act_groups.h"
#include "core/check.h"
#include "core/group_value.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "layout/tiles.h"

namespace tmac {
namespace {

constexpr int64_t kRowsPerThread = 64;  ///< a multiple of every n_tile, so that no two threads share a tile

void check_parts(const CanonicalWeight& weight, const KernelPair& kernels) {
    validate(weight.spec);
    for (const Kernel* kernel : {kernels.decode, kernels.prompt}) {
        if (!serves(*kernel, weight.spec)) {
            throw UnsupportedSpec(std::string(kernel->name) + " does not serve " + to_string(weight.spec));
        }
    }
    TMAC_CHECK(weight.planes.bits == weight.spec.bits, "[pack] ", weight.planes.bits,
               " planes for bits=", int{weight.spec.bits});
    TMAC_CHECK(weight.scale_type == scale_type_of(weight.spec.scale_format),
               "[pack] the scales' dtype is not the spec's scale_format");
    const bool fixed = weight.spec.zero_point == ZeroPoint::fixed;
    TMAC_CHECK((weight.zero_type == GroupType::none) == fixed,
               "[pack] zeros are wanted exactly where zero_point is not 'fixed'");
    const bool two_level = weight.spec.scale_format == ScaleFormat::two_level;
    TMAC_CHECK(fixed || (weight.zero_type == GroupType::i8) == two_level,
               "[pack] offsets are i8 exactly where scale_format is 'two_level'");
    TMAC_CHECK((weight.super_scales != nullptr) == two_level,
               "[pack] super_scales are wanted exactly where scale_format is 'two_level'");
    TMAC_CHECK((weight.super_offsets != nullptr) == (two_level && !fixed),
               "[pack] super_offsets are wanted exactly where scale_format is 'two_level' and zero_point 'offset'");
}

/// Layout::trits has no room for a code 3, which planes can hold.
void check_trits(const PlanesView& planes) {
    for (int64_t row = 0; row < planes.n; ++row) {
        uint8_t both = 0;
        for (int64_t i = 0; i < planes.row_bytes(); ++i) {
            both = static_cast<uint8_t>(both | (planes.row(0, row)[i] & planes.row(1, row)[i]));
        }
        TMAC_CHECK(both == 0, "[pack] row ", row, " of a ternary weight has a code 3; codes are 0, 1 and 2");
    }
}

PackedHeader make_header(const CanonicalWeight& weight, const KernelPair& kernels) {
    PackedHeader header{};
    std::memcpy(header.magic, kPackedMagic, sizeof(kPackedMagic));
    std::strncpy(header.kernel, kernels.decode->name, sizeof(header.kernel) - 1);
    std::strncpy(header.prompt_kernel, kernels.prompt->name, sizeof(header.prompt_kernel) - 1);
    header.spec = weight.spec;
    header.n = weight.planes.n;
    header.k = weight.planes.k;
    header.layout = packed_layout(kernels, weight.spec);
    header.scale_type = weight.scale_type;
    header.zero_type = weight.zero_type;
    header.has_perm = weight.perm != nullptr ? 1 : 0;
    header.checksum = header_checksum(header);
    return header;
}

/// Where a row's values lie in [tiles][groups][n_tile], or in the order of bands.
struct GroupOrder {
    const PackedHeader& header;
    int64_t groups;  ///< or super-groups
    int64_t bytes;   ///< of a value

    /// Byte offset of the first one.
    int64_t first(int64_t row) const {
        if (in_bands(header.layout)) {
            return BandPlace(header.n, row).value(groups, 0) * bytes;
        }
        const int64_t n_tile = layout_shape(header.layout, header.spec.bits).n_tile;
        return (row / n_tile * groups * n_tile + row % n_tile) * bytes;
    }

    /// Bytes from one to the next.
    int64_t stride(int64_t row) const {
        return bytes * (in_bands(header.layout) ? BandPlace(header.n, row).rows
                                                : int64_t{layout_shape(header.layout, header.spec.bits).n_tile});
    }
};

enum class Direction { to_tiles, to_rows };

/// Rows [begin, end) of group values of kBytes between [n][groups], of which `first_row` is the first there is, and the
/// tiles' order.
template <size_t kBytes>
void move_group_values(Direction direction, uint8_t* rows, uint8_t* tiles, const GroupOrder& order, Range range,
                       int64_t first_row) {
    for (int64_t row = range.begin; row < range.end; ++row) {
        uint8_t* in_row = rows + (row - first_row) * order.groups * static_cast<int64_t>(kBytes);
        uint8_t* in_tile = tiles + order.first(row);
        const int64_t stride = order.stride(row);
        for (int64_t group = 0; group < order.groups; ++group, in_row += kBytes, in_tile += stride) {
            direction == Direction::to_tiles ? std::memcpy(in_tile, in_row, kBytes)
                                             : std::memcpy(in_row, in_tile, kBytes);
        }
    }
}

uint8_t* writable(const void* data) { return static_cast<uint8_t*>(const_cast<void*>(data)); }

/// Moves all kinds of group values that there are; `arrays` begin with row `first_row`. Never writes to the side that
/// `direction` reads.
void move_groups(Direction direction, const WeightView& view, const GroupArrays& arrays, Range range,
                 int64_t first_row = 0) {
    const auto move = [&](void* rows, int64_t part, int64_t groups, GroupType type) {
        if (rows == nullptr) {
            return;
        }
        const int64_t bytes = element_bytes(type);
        const auto move_values = bytes == 1   ? move_group_values<1>
                                 : bytes == 2 ? move_group_values<2>
                                              : move_group_values<4>;
        move_values(direction, static_cast<uint8_t*>(rows), writable(view.data + part), {view.header, groups, bytes},
                    range, first_row);
    };
    move(arrays.scales, view.parts.scales, view.parts.num_groups, view.header.scale_type);
    move(arrays.zeros, view.parts.zeros, view.parts.num_groups, view.header.zero_type);
    move(arrays.super_scales, view.parts.super_scales, view.parts.num_super_groups, GroupType::f16);
    move(arrays.super_offsets, view.parts.super_offsets, view.parts.num_super_groups, GroupType::f16);
}

TiledCodes tiled_codes(const WeightView& view) {
    return {view.header.layout, writable(view.data + view.parts.codes), view.parts.region_stride, view.parts.padded_k,
            view.header.n};
}

std::vector<ActGroup> act_groups_of(const WeightView& view) {
    const LayoutShape shape = layout_shape(view.header.layout, view.header.spec.bits);
    return make_act_groups(view.header.spec, view.header.k, shape.k_chunk);
}

/// Weights of one row from its codes.
void dequantize_row(const WeightView& view, const uint8_t* codes, const RowGroupValues& values, float* out) {
    const QuantSpec& spec = view.header.spec;
    const int64_t size = spec.group_size == -1 ? view.header.k : spec.group_size;
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    for (int64_t group = 0; group < view.parts.num_groups; ++group) {
        float scale = load_group_value(values.scales.data(), view.header.scale_type, group);
        float zero = spec.zero_point == ZeroPoint::fixed
                         ? spec.fixed_zero
                         : load_group_value(values.zeros.data(), view.header.zero_type, group);
        if (two_level) {
            const auto super_at = static_cast<size_t>(group * size / kSuperColumns);
            scale = f16_to_f32(values.super_scales[super_at]) * scale;
            zero = spec.zero_point == ZeroPoint::fixed ? zero : -(f16_to_f32(values.super_offsets[super_at]) * zero);
        }
        const int64_t end = std::min(view.header.k, (group + 1) * size);
        for (int64_t column = group * size; column < end; ++column) {
            const auto code = static_cast<float>(codes[column]);
            out[column] = spec.zero_point == ZeroPoint::offset ? code * scale + zero : (code - zero) * scale;
        }
    }
}

}  // namespace

void check_permutation(const int32_t* perm, int64_t k) {
    std::vector<bool> seen(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) {
        TMAC_CHECK(perm[i] >= 0 && perm[i] < k && !seen[static_cast<size_t>(perm[i])], "[perm] entry ", i, " = ",
                   perm[i], " is out of range or stands twice");
        seen[static_cast<size_t>(perm[i])] = true;
    }
}

PackedWeight pack(const CanonicalWeight& weight, const KernelPair& kernels, int num_threads) {
    check_parts(weight, kernels);
    const PackedHeader header = make_header(weight, kernels);
    if (header.layout == Layout::trits) {
        check_trits(weight.planes);
    }
    const PackedParts parts = packed_parts(header);
    PackedWeight packed(header, parts);
    const WeightView view{header, parts, kernels, packed.data()};
    if (weight.perm != nullptr) {
        std::memcpy(packed.data() + parts.perm, weight.perm, static_cast<size_t>(header.k) * sizeof(int32_t));
    }
    const GroupArrays arrays{writable(weight.scales), writable(weight.zeros),
                             const_cast<uint16_t*>(weight.super_scales), const_cast<uint16_t*>(weight.super_offsets)};
    const std::vector<ActGroup> act_groups = act_groups_of(view);
    parallel_for(header.n, kRowsPerThread, num_threads, [&](Range range) {
        move_groups(Direction::to_tiles, view, arrays, range);
        planes_to_layout(weight.planes, act_groups, tiled_codes(view), range);
    });
    return packed;
}

void unpack(const WeightView& weight, uint8_t* planes, const GroupArrays& groups, int32_t* perm, int num_threads) {
    if (perm != nullptr && weight.perm() != nullptr) {
        std::memcpy(perm, weight.perm(), static_cast<size_t>(weight.header.k) * sizeof(int32_t));
    }
    const std::vector<ActGroup> act_groups = act_groups_of(weight);
    const PlanesView shape{planes, weight.header.spec.bits, weight.header.n, weight.header.k};
    parallel_for(weight.header.n, kRowsPerThread, num_threads, [&](Range range) {
        move_groups(Direction::to_rows, weight, groups, range);
        layout_to_planes(tiled_codes(weight), act_groups, shape, planes + range.begin * shape.row_bytes(), range.begin,
                         range.end);
    });
}

RowGroupValues::RowGroupValues(const WeightView& view)
    : scales(static_cast<size_t>(view.parts.num_groups * element_bytes(view.header.scale_type))),
      zeros(static_cast<size_t>(view.parts.num_groups * element_bytes(view.header.zero_type))),
      super_scales(static_cast<size_t>(view.parts.num_super_groups)),
      super_offsets(zeros.empty() ? 0 : super_scales.size()) {}

GroupArrays RowGroupValues::arrays() {
    const auto data = [](auto& values) { return values.empty() ? nullptr : values.data(); };
    return {data(scales), data(zeros), data(super_scales), data(super_offsets)};
}

RowDequantizer::RowDequantizer(const WeightView& view)
    : weight(view),
      act_groups(act_groups_of(view)),
      planes(static_cast<size_t>(view.header.spec.bits * ((view.header.k + 7) / 8))),
      values(view),
      codes(static_cast<size_t>(view.header.k)),
      permuted(static_cast<size_t>(view.perm() == nullptr ? 0 : view.header.k)) {}

void RowDequantizer::run(int64_t row, float* out) {
    const PackedHeader& header = weight.header;
    const PlanesView shape{nullptr, header.spec.bits, 1, header.k};
    std::fill(planes.begin(), planes.end(), uint8_t{0});
    layout_to_planes(tiled_codes(weight), act_groups, shape, planes.data(), row, row + 1);
    planes_to_codes(planes.data(), shape.row_bytes(), header.k, header.spec.bits, codes.data());
    move_groups(Direction::to_rows, weight, values.arrays(), {row, row + 1}, row);
    const int32_t* perm = weight.perm();
    dequantize_row(weight, codes.data(), values, perm == nullptr ? out : permuted.data());
    for (int64_t column = 0; perm != nullptr && column < header.k; ++column) {
        out[perm[column]] = permuted[static_cast<size_t>(column)];
    }
}

void dequantize(const WeightView& weight, float* out, int num_threads) {
    parallel_for(weight.header.n, kRowsPerThread, num_threads, [&](Range range) {
        RowDequantizer rows(weight);
        for (int64_t row = range.begin; row < range.end; ++row) {
            rows.run(row, out + row * weight.header.k);
        }
    });
}

}  // namespace tmac
