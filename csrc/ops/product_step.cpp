#include "ops/product_step.h"

#include <algorithm>

#include "core/cpu_features.h"
#include "core/half.h"
#include "kernels/registry.h"
#include "ops/convert.h"

namespace tmac {
namespace {

constexpr int32_t kFloatTile = 16;  ///< rows of a float weight that one thread takes at least

QgemmArgs make_args(const WeightView& weight, const PreparedInput& input, int32_t tokens) {
    QgemmArgs args{};
    args.spec = &weight.header.spec;
    args.codes = weight.regions[0];
    args.regions = weight.region_offsets();
    args.scales = weight.data + weight.parts.scales;
    args.zeros = weight.header.zero_type == GroupType::none ? nullptr : weight.data + weight.parts.zeros;
    if (weight.header.spec.scale_format == ScaleFormat::two_level) {
        args.super_scales = reinterpret_cast<const uint16_t*>(weight.data + weight.parts.super_scales);
        args.super_offsets = reinterpret_cast<const uint16_t*>(weight.data + weight.parts.super_offsets);
    }
    args.scale_type = weight.header.scale_type;
    args.zero_type = weight.header.zero_type;
    args.layout = weight.header.layout;
    args.act_groups = input.act_groups.data();
    args.num_act_groups = static_cast<int32_t>(input.act_groups.size());
    args.num_groups = static_cast<int32_t>(weight.parts.num_groups);
    args.num_super_groups = static_cast<int32_t>(weight.parts.num_super_groups);
    args.k = weight.header.k;
    args.padded_k = weight.parts.padded_k;
    args.act = input.act.data();
    args.act_stride = input.act_bytes;
    args.act_scale = input.act_scale.data();
    args.act_sum = input.act_sum.data();
    args.act_isum = input.act_isum.data();
    args.n = weight.header.n;
    args.code_scale = weight.code_scale;
    args.code_base = weight.code_base;
    args.ask_ahead = (selection().features & kAvx512fp16) != 0;
    args.m = tokens;
    return args;
}

FloatType float_type(DType type) {
    switch (type) {
        case DType::f16:
            return FloatType::f16;
        case DType::bf16:
            return FloatType::bf16;
        case DType::f32:
            break;
    }
    return FloatType::f32;
}

}  // namespace

const Kernel* kernel_for(const WeightView& weight, Phase phase, int64_t tokens) {
    const bool prompt = phase == Phase::prompt || (phase == Phase::by_tokens && tokens > kDecodeTokens);
    return prompt ? weight.kernels.prompt : weight.kernels.decode;
}

ProductStep::ProductStep(const Projection& projection, const Kernel& kernel, const PreparedInput& input, int64_t first,
                         int32_t tokens)
    : projection_(&projection),
      kernel_(&kernel),
      input_(&input),
      first_(first),
      args_(make_args(*projection.packed, input, tokens)) {
    const PackedHeader& header = projection.packed->header;
    n_tile_ = layout_shape(header.layout, header.spec.bits).n_tile;
    tiles_ = (header.n + n_tile_ - 1) / n_tile_;
    together_ = rows_together(header.layout, header.spec.bits) / n_tile_;
}

ProductStep::ProductStep(const Projection& projection, const float* rows, int64_t first, int32_t tokens)
    : projection_(&projection), rows_(rows), first_(first), n_tile_(kFloatTile), together_(1) {
    args_.n = projection.floats->n;
    args_.k = projection.floats->k;
    args_.m = tokens;
    tiles_ = (args_.n + n_tile_ - 1) / n_tile_;
}

void ProductStep::set_result(float* result, int64_t stride) {
    args_.y = result;
    args_.ldy = stride;
}

void ProductStep::run(Range tiles) const {
    const int64_t begin = tiles.begin * n_tile_;
    const int64_t end = std::min(args_.n, tiles.end * n_tile_);
    if (kernel_ != nullptr) {
        QgemmArgs args = args_;
        args.row_begin = begin;
        args.row_end = end;
        kernel_->run(args);
    } else {
        const FloatMatrix& weight = *projection_->floats;
        vector_ops().float_rows(
            {float_type(weight.type), weight.data, weight.k, rows_, weight.k, args_.y, args_.ldy, begin, end, args_.m});
    }
    finish(begin, end);
}

/// Rows [begin, end) of every token: undo the down-scaling, add the bias, store.
void ProductStep::finish(int64_t begin, int64_t end) const {
    const Projection& projection = *projection_;
    const bool in_place = projection.y.type == DType::f32 && projection.store == Store::set;
    for (int64_t token = 0; token < args_.m; ++token) {
        const bool scaled_down = input_ != nullptr && input_->scaled_down[static_cast<size_t>(token)] != 0;
        if (in_place && !scaled_down && projection.bias == nullptr) {
            continue;
        }
        float* values = args_.y + token * args_.ldy;
        if (scaled_down) {
            for (int64_t row = begin; row < end; ++row) {
                values[row] *= kScaleUp;
            }
        }
        if (projection.bias != nullptr) {
            for (int64_t row = begin; row < end; ++row) {
                values[row] += projection.bias[row];
            }
        }
        if (projection.store == Store::add) {
            float* sums = static_cast<float*>(projection.y.data) + (first_ + token) * projection.y.stride;
            for (int64_t row = begin; row < end; ++row) {
                sums[row] += projection.factor * values[row];
            }
        } else if (!in_place) {
            store_columns(projection.y, first_ + token, begin, end, values);
        }
    }
}

}  // namespace tmac
