#include "ops/linear.h"

#include <algorithm>
#include <deque>
#include <vector>

#include "core/check.h"
#include "core/range.h"
#include "core/thread_pool.h"
#include "ops/convert.h"
#include "ops/prepare.h"

namespace tmac {
namespace {

/// Weights per thread under which starting one costs more than it saves.
constexpr int64_t kMinWork = 1 << 16;

/// What one projection needs while a block of tokens is multiplied.
struct Step {
    const Kernel* kernel;
    const PreparedInput* input;
    QgemmArgs args;
    int64_t tiles;
    int32_t n_tile;
    int64_t together;  ///< rows: see rows_together()
};

QgemmArgs make_args(const WeightView& weight, const PreparedInput& input, int32_t tokens) {
    QgemmArgs args{};
    args.spec = &weight.header.spec;
    args.codes = weight.data + weight.parts.codes;
    args.region_stride = weight.parts.region_stride;
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
    args.m = tokens;
    return args;
}

/// Rows [begin, end) of every token of a block: undo the down-scaling, add the bias, round to y's type.
void finish_rows(const QgemmArgs& args, const PreparedInput& input, const Projection& projection, int64_t first) {
    const bool plain = projection.bias == nullptr && projection.y.type == DType::f32;
    for (int64_t token = 0; token < args.m; ++token) {
        const bool scaled_down = input.scaled_down[static_cast<size_t>(token)] != 0;
        if (plain && !scaled_down) {
            continue;
        }
        float* values = args.y + token * args.ldy;
        if (scaled_down) {
            for (int64_t row = args.row_begin; row < args.row_end; ++row) {
                values[row] *= kScaleUp;
            }
        }
        if (projection.bias != nullptr) {
            for (int64_t row = args.row_begin; row < args.row_end; ++row) {
                values[row] += projection.bias[row];
            }
        }
        if (projection.y.type != DType::f32) {
            store_columns(projection.y, first + token, args.row_begin, args.row_end, values);
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

int threads_for(int64_t weights, int num_threads) {
    const int wanted = num_threads > 0 ? num_threads : get_num_threads();
    return static_cast<int>(std::clamp<int64_t>(weights / kMinWork, 1, wanted));
}

const Kernel* kernel_for(const WeightView& weight, Phase phase, int64_t tokens) {
    const bool prompt = phase == Phase::prompt || (phase == Phase::by_tokens && tokens > kDecodeTokens);
    return prompt ? weight.kernels.prompt : weight.kernels.decode;
}

/// Buffers that live as long as the calling thread.
struct Scratch {
    std::deque<PreparedInput> inputs;         ///< one per distinct encoding
    std::vector<std::vector<float>> results;  ///< f32 results of a block, per projection whose y has another type
    std::vector<Step> steps;
};

/// The input of `projections[index]`: encoded anew unless an earlier projection wanted it alike.
const PreparedInput& input_for(const Tensor& x, const std::vector<Projection>& projections, size_t index, int64_t first,
                               int32_t tokens, int threads, Scratch& scratch) {
    const Projection& projection = projections[index];
    for (size_t i = 0; i < index; ++i) {
        if (same_encoding(*scratch.steps[i].kernel, projections[i].weight, *scratch.steps[index].kernel,
                          projection.weight)) {
            return *scratch.steps[i].input;
        }
    }
    while (scratch.inputs.size() <= index) {
        scratch.inputs.emplace_back();
    }
    prepare(*scratch.steps[index].kernel, projection.weight, x, first, tokens, threads, scratch.inputs[index]);
    return scratch.inputs[index];
}

void make_step(const Tensor& x, const std::vector<Projection>& projections, size_t index, int64_t first, int32_t tokens,
               int threads, Scratch& scratch) {
    const Projection& projection = projections[index];
    Step& step = scratch.steps[index];
    step.input = &input_for(x, projections, index, first, tokens, threads, scratch);
    step.args = make_args(projection.weight, *step.input, tokens);
    if (projection.y.type == DType::f32) {
        step.args.y = static_cast<float*>(projection.y.data) + first * projection.y.stride;
        step.args.ldy = projection.y.stride;
        return;
    }
    std::vector<float>& results = scratch.results[index];
    results.resize(static_cast<size_t>(tokens * projection.weight.header.n));
    step.args.y = results.data();
    step.args.ldy = projection.weight.header.n;
}

/// Tiles [begin, end) of all steps, counted through; every step begins at a multiple of `grain`.
void run_tiles(const std::vector<Projection>& projections, const std::vector<Step>& steps, int64_t first, int64_t grain,
               Range tiles) {
    int64_t before = 0;
    for (size_t i = 0; i < projections.size(); ++i) {
        const Step& step = steps[i];
        const int64_t begin = std::max<int64_t>(tiles.begin - before, 0);
        const int64_t end = std::min(tiles.end - before, step.tiles);
        before += round_up(step.tiles, grain);
        if (begin >= end) {
            continue;
        }
        QgemmArgs args = step.args;
        args.row_begin = begin * step.n_tile;
        args.row_end = std::min(args.n, end * step.n_tile);
        step.kernel->run(args);
        finish_rows(args, *step.input, projections[i], first);
    }
}

/// Tiles that the threads' ranges are multiples of: those that lie together, unless shares so coarse would leave
/// threads idle for more than a twentieth of the time.
int64_t grain_of(const std::vector<Step>& steps, int64_t tiles, int threads) {
    int64_t grain = 1;
    for (const Step& step : steps) {
        grain = std::max(grain, step.together / step.n_tile);
    }
    const int64_t longest = round_up((tiles + threads - 1) / threads, grain);
    return threads > 1 && 20 * longest * threads > 21 * tiles ? 1 : grain;
}

}  // namespace

void linear(const Tensor& x, const std::vector<Projection>& projections, Phase phase, int num_threads) {
    thread_local Scratch scratch;
    Scratch& mine = scratch;  // the caller's, not the worker's thread_local
    mine.steps.assign(projections.size(), {});
    mine.results.resize(std::max(mine.results.size(), projections.size()));
    int64_t weights = 0;
    int64_t tiles = 0;
    int64_t block = kMaxTokens;
    for (size_t i = 0; i < projections.size(); ++i) {
        const Projection& projection = projections[i];
        check_shapes(x, projection.weight, projection.y);
        const PackedHeader& header = projection.weight.header;
        Step& step = mine.steps[i];
        step.kernel = kernel_for(projection.weight, phase, x.rows);
        step.n_tile = layout_shape(header.layout, header.spec.bits).n_tile;
        step.together = rows_together(header.layout, header.spec.bits);
        step.tiles = (header.n + step.n_tile - 1) / step.n_tile;
        weights += header.n * header.k;
        tiles += step.tiles;
        block = std::min(block, tokens_at_once(*step.kernel));
    }
    for (int64_t first = 0; first < x.rows; first += block) {
        const auto tokens = static_cast<int32_t>(std::min(block, x.rows - first));
        const int threads = threads_for(weights * tokens, num_threads);
        for (size_t i = 0; i < projections.size(); ++i) {
            make_step(x, projections, i, first, tokens, threads, mine);
        }
        const int64_t grain = grain_of(mine.steps, tiles, threads);
        int64_t places = 0;
        for (const Step& step : mine.steps) {
            places += round_up(step.tiles, grain);
        }
        parallel_for(places, grain, threads,
                     [&](Range range) { run_tiles(projections, mine.steps, first, grain, range); });
    }
}

}  // namespace tmac
