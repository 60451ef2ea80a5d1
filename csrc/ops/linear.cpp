#include "ops/linear.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/convert.h"
#include "ops/prepare.h"

namespace tmac {
namespace {

/// Tokens that are encoded and multiplied together: bounds the tables to a few MiB at any batch.
constexpr int64_t kTokenBlock = 32;

/// Weights per thread under which starting one costs more than it saves.
constexpr int64_t kMinWork = 1 << 16;

QgemmArgs make_args(const WeightView& weight, const PreparedInput& input, int32_t tokens) {
    QgemmArgs args{};
    args.spec = &weight.header.spec;
    args.codes = weight.data + weight.parts.codes;
    args.region_stride = weight.parts.region_stride;
    args.scales = weight.data + weight.parts.scales;
    args.zeros = weight.header.zero_type == GroupType::none ? nullptr : weight.data + weight.parts.zeros;
    args.scale_type = weight.header.scale_type;
    args.zero_type = weight.header.zero_type;
    args.act_groups = input.act_groups.data();
    args.num_act_groups = static_cast<int32_t>(input.act_groups.size());
    args.num_groups = static_cast<int32_t>(weight.parts.num_groups);
    args.k = weight.header.k;
    args.padded_k = weight.parts.padded_k;
    args.act = input.act.data();
    args.act_scale = input.act_scale.data();
    args.act_sum = input.act_sum.data();
    args.act_isum = input.act_isum.data();
    args.n = weight.header.n;
    args.m = tokens;
    return args;
}

/// Rows [begin, end) of every token of a block: undo the down-scaling, add the bias, round to y's type.
void finish_rows(const QgemmArgs& args, const PreparedInput& input, const float* bias, const Tensor& y, int64_t first) {
    for (int64_t token = 0; token < args.m; ++token) {
        float* values = args.y + token * args.ldy;
        if (input.scaled_down[static_cast<size_t>(token)] != 0) {
            for (int64_t row = args.row_begin; row < args.row_end; ++row) {
                values[row] *= kScaleUp;
            }
        }
        if (bias != nullptr) {
            for (int64_t row = args.row_begin; row < args.row_end; ++row) {
                values[row] += bias[row];
            }
        }
        if (y.type != DType::f32) {
            store_columns(y, first + token, args.row_begin, args.row_end, values);
        }
    }
}

void check_shapes(const Tensor& x, const WeightView& weight, const Tensor& y) {
    TMAC_CHECK(x.columns == weight.header.k, "[linear] in_features=", x.columns, ", but the weight was packed for ",
               weight.header.k);
    TMAC_CHECK(y.columns == weight.header.n, "[linear] out_features=", y.columns, ", but the weight was packed for ",
               weight.header.n);
    TMAC_CHECK(x.rows == y.rows && x.rows >= 0, "[linear] the input has ", x.rows, " tokens, the output ", y.rows);
}

int threads_for(const WeightView& weight, int64_t tokens, int num_threads) {
    const int64_t work = weight.header.n * weight.header.k * tokens / kMinWork;
    const int wanted = num_threads > 0 ? num_threads : get_num_threads();
    return static_cast<int>(std::clamp<int64_t>(work, 1, wanted));
}

}  // namespace

void linear(const Tensor& x, const WeightView& weight, const float* bias, const Tensor& y, int num_threads) {
    check_shapes(x, weight, y);
    const int32_t n_tile = layout_shape(weight.header.layout, weight.header.spec.bits).n_tile;
    thread_local PreparedInput input;
    thread_local std::vector<float> results;  // f32 results of a block where y has another type
    for (int64_t first = 0; first < x.rows; first += kTokenBlock) {
        const auto tokens = static_cast<int32_t>(std::min(kTokenBlock, x.rows - first));
        const int threads = threads_for(weight, tokens, num_threads);
        prepare(weight, x, first, tokens, threads, input);
        QgemmArgs block = make_args(weight, input, tokens);
        if (y.type == DType::f32) {
            block.y = static_cast<float*>(y.data) + first * y.stride;
            block.ldy = y.stride;
        } else {
            results.resize(static_cast<size_t>(tokens * weight.header.n));
            block.y = results.data();
            block.ldy = weight.header.n;
        }
        const PreparedInput& prepared = input;  // the caller's, not the worker's thread_local
        parallel_for(weight.header.n, n_tile, threads, [&](Range rows) {
            QgemmArgs args = block;
            args.row_begin = rows.begin;
            args.row_end = rows.end;
            weight.kernel->run(args);
            finish_rows(args, prepared, bias, y, first);
        });
    }
}

}  // namespace tmac
