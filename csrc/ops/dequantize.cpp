#include "ops/dequantize.h"

#include <algorithm>

#include "core/act_groups.h"
#include "core/group_value.h"
#include "core/thread_pool.h"
#include "layout/bitplane.h"

namespace tmac {
namespace {

constexpr int64_t kRowsPerThread = 64;

int64_t group_columns(const WeightView& view) {
    const int64_t size = view.header.spec.group_size;
    return size == -1 ? view.header.k : size;
}

}  // namespace

TiledCodes tiled_codes(const WeightView& view) {
    return {view.header.layout, const_cast<uint8_t*>(view.regions[0]), view.region_offsets(), view.parts.padded_k,
            view.header.n};
}

std::vector<ActGroup> act_groups_of(const WeightView& view) {
    return make_act_groups(view.header.spec, view.header.k, view.parts.k_chunk);
}

RowReader::RowReader(const WeightView& view)
    : weight_(view),
      act_groups_(act_groups_of(view)),
      planes_(static_cast<size_t>(view.header.spec.bits * ((view.header.k + 7) / 8))),
      codes_(static_cast<size_t>(view.header.k)),
      scales_(static_cast<size_t>(view.parts.num_groups * element_bytes(view.header.scale_type))),
      zeros_(static_cast<size_t>(view.parts.num_groups * element_bytes(view.header.zero_type))),
      super_scales_(static_cast<size_t>(view.parts.num_super_groups)),
      super_offsets_(zeros_.empty() ? 0 : super_scales_.size()) {}

void RowReader::read(int64_t row) {
    const PackedHeader& header = weight_.header;
    const PlanesView shape{nullptr, header.spec.bits, 1, header.k};
    std::fill(planes_.begin(), planes_.end(), uint8_t{0});
    layout_to_planes(tiled_codes(weight_), act_groups_, shape, planes_.data(), row, row + 1);
    planes_to_codes(planes_.data(), shape.row_bytes(), header.k, header.spec.bits, codes_.data());
    const auto data = [](auto& values) { return values.empty() ? nullptr : values.data(); };
    move_groups(Direction::to_rows, weight_, {data(scales_), data(zeros_), data(super_scales_), data(super_offsets_)},
                {row, row + 1}, row);
}

size_t RowReader::super_index(int64_t group) const {
    return static_cast<size_t>(group * group_columns(weight_) / kSuperColumns);
}

float RowReader::scale(int64_t group) const {
    const float value = load_group_value(scales_.data(), weight_.header.scale_type, group);
    return super_scales_.empty() ? value : f16_to_f32(super_scales_[super_index(group)]) * value;
}

float RowReader::zero(int64_t group) const {
    if (weight_.header.spec.zero_point == ZeroPoint::fixed) {
        return weight_.header.spec.fixed_zero;
    }
    const float value = load_group_value(zeros_.data(), weight_.header.zero_type, group);
    return super_offsets_.empty() ? value : -(f16_to_f32(super_offsets_[super_index(group)]) * value);
}

RowDequantizer::RowDequantizer(const WeightView& view)
    : weight_(view), reader_(view), permuted_(static_cast<size_t>(view.perm() == nullptr ? 0 : view.header.k)) {}

void RowDequantizer::run(int64_t row, float* out) {
    reader_.read(row);
    const int64_t k = weight_.header.k;
    const int64_t size = group_columns(weight_);
    const bool is_offset = weight_.header.spec.zero_point == ZeroPoint::offset;
    const int32_t* perm = weight_.perm();
    float* ordered = perm == nullptr ? out : permuted_.data();
    for (int64_t group = 0; group < weight_.parts.num_groups; ++group) {
        const float scale = reader_.scale(group);
        const float zero = reader_.zero(group);
        const int64_t end = std::min(k, (group + 1) * size);
        for (int64_t column = group * size; column < end; ++column) {
            const float code = weight_.code_scale * static_cast<float>(reader_.codes()[column]) + weight_.code_base;
            ordered[column] = is_offset ? code * scale + zero : (code - zero) * scale;
        }
    }
    for (int64_t column = 0; perm != nullptr && column < k; ++column) {
        out[perm[column]] = permuted_[static_cast<size_t>(column)];
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
