#include "ops/linear.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <vector>

#include "core/check.h"
#include "core/range.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "ops/convert.h"
#include "ops/prepare.h"
#include "ops/product_step.h"

namespace tmac {
namespace {

/// Weights per thread under which starting one costs more than it saves.
constexpr int64_t kMinWork = 1 << 16;

/// Values per region under which encoding on several threads costs more than it saves.
constexpr int64_t kMinEncoding = 1 << 12;

void check_shapes(const Job& job, const Projection& projection) {
    const Tensor& y = projection.y;
    TMAC_CHECK(job.columns == projection.k(), "[linear] in_features=", job.columns, ", but the weight was packed for ",
               projection.k());
    TMAC_CHECK(y.columns == projection.n(), "[linear] out_features=", y.columns, ", but the weight was packed for ",
               projection.n());
    TMAC_CHECK(job.tokens == y.rows && job.tokens >= 0, "[linear] the input has ", job.tokens, " tokens, the output ",
               y.rows);
    TMAC_CHECK(projection.store == Store::set || y.type == DType::f32, "[linear] only an f32 output can be added to");
}

int threads_for(int64_t weights, int num_threads) {
    const int wanted = num_threads > 0 ? num_threads : get_num_threads();
    return static_cast<int>(std::clamp<int64_t>(weights / kMinWork, 1, wanted));
}

/// One way in which some weights of a job want its rows.
struct Encoding {
    const Kernel* kernel;
    const Projection* projection;
    PreparedInput* input;

    const WeightView& weight() const { return *projection->packed; }
};

/// A job while a block of its tokens is multiplied.
struct Work {
    const Job* job;
    int64_t first;   ///< token of the block
    int32_t tokens;  ///< of the block; 0 where the job has no more
    std::vector<Encoding> encodings;
    float* rows;  ///< f32 [tokens, columns], or null where every weight is packed
};

/// Buffers that live as long as the calling thread.
struct Scratch {
    std::deque<PreparedInput> inputs;         ///< one per distinct encoding
    std::vector<std::vector<float>> results;  ///< of a block, per projection that does not simply set an f32 output
    std::vector<std::vector<float>> rows;     ///< per job with float weights
    std::vector<ProductStep> steps;
    std::vector<Work> works;
};

/// The encoding of a job's rows that the weight wants: an earlier one of the job, or a new one.
const PreparedInput& encoding_for(const Kernel& kernel, const Projection& projection, Work& work, size_t& used,
                                  Scratch& scratch) {
    const WeightView& weight = *projection.packed;
    for (const Encoding& encoding : work.encodings) {
        const bool plain = encoding.projection->input_norm == nullptr && projection.input_norm == nullptr;
        if (plain && same_encoding(*encoding.kernel, encoding.weight(), kernel, weight)) {
            return *encoding.input;
        }
    }
    if (scratch.inputs.size() <= used) {
        scratch.inputs.emplace_back();
    }
    PreparedInput& input = scratch.inputs[used++];
    reserve(kernel, weight, work.tokens, input);
    work.encodings.push_back({&kernel, &projection, &input});
    return input;
}

/// Makes row `token` of the block and encodes it for all weights.
void encode_row(const Work& work, int32_t token, std::vector<float>& scratch, std::vector<float>& permuted) {
    const auto columns = static_cast<size_t>(work.job->columns);
    float* own = work.rows != nullptr ? work.rows + static_cast<size_t>(token) * columns : nullptr;
    if (own == nullptr) {
        scratch.resize(columns);
    }
    float* room = own != nullptr ? own : scratch.data();
    const float* row = work.job->input->row(work.first + token, room);
    if (own != nullptr && row != own) {
        std::copy_n(row, columns, own);
    }
    std::vector<float> normed;
    for (const Encoding& encoding : work.encodings) {
        const float* values = row;
        if (encoding.projection->input_norm != nullptr) {
            normed.resize(columns);
            vector_ops().rms_norm(row, encoding.projection->input_norm, encoding.projection->input_norm_eps,
                                  work.job->columns, normed.data());
            values = normed.data();
        }
        prepare_token(*encoding.kernel, encoding.weight(), values, token, permuted, *encoding.input);
    }
}

/// Encodes the block of every job, several tokens at once where there are several.
void encode(const std::vector<Work>& works, int threads) {
    int64_t tokens = 0;
    int64_t values = 0;
    for (const Work& work : works) {
        tokens += work.tokens;
        values += work.tokens * work.job->columns;
    }
    parallel_for(tokens, 1, values < kMinEncoding ? 1 : threads, [&](Range range) {
        std::vector<float> scratch;
        std::vector<float> permuted;
        int64_t before = 0;
        for (const Work& work : works) {
            const int64_t begin = std::max<int64_t>(range.begin - before, 0);
            const int64_t end = std::min<int64_t>(range.end - before, work.tokens);
            for (int64_t token = begin; token < end; ++token) {
                encode_row(work, static_cast<int32_t>(token), scratch, permuted);
            }
            before += work.tokens;
        }
    });
}

/// Where a step's results go: the output itself where it is f32 and set, else a buffer.
void place_result(ProductStep& step, const Projection& projection, int64_t first, std::vector<float>& results) {
    if (projection.y.type == DType::f32 && projection.store == Store::set) {
        step.set_result(static_cast<float*>(projection.y.data) + first * projection.y.stride, projection.y.stride);
        return;
    }
    const int64_t n = projection.n();
    results.resize(static_cast<size_t>(step.tokens() * n));
    step.set_result(results.data(), n);
}

/// Steps of every projection of a work's block; the order of all projections of all jobs.
void make_steps(Work& work, Phase phase, size_t& used, Scratch& scratch) {
    work.encodings.clear();
    const bool floats = std::any_of(work.job->projections.begin(), work.job->projections.end(),
                                    [](const Projection& projection) { return projection.floats != nullptr; });
    std::vector<float>& rows = scratch.rows[static_cast<size_t>(&work - scratch.works.data())];
    if (floats) {
        rows.resize(static_cast<size_t>(work.tokens * work.job->columns));
    }
    work.rows = floats ? rows.data() : nullptr;
    for (const Projection& projection : work.job->projections) {
        if (projection.packed != nullptr) {
            const Kernel& kernel = *kernel_for(*projection.packed, phase, work.job->tokens);
            const PreparedInput& input = encoding_for(kernel, projection, work, used, scratch);
            scratch.steps.emplace_back(projection, kernel, input, work.first, work.tokens);
        } else {
            scratch.steps.emplace_back(projection, work.rows, work.first, work.tokens);
        }
        const size_t index = scratch.steps.size() - 1;
        if (scratch.results.size() <= index) {
            scratch.results.emplace_back();
        }
        place_result(scratch.steps.back(), projection, work.first, scratch.results[index]);
    }
}

/// Tiles [begin, end) of all steps, counted through; every step begins at a multiple of `grain`.
void run_tiles(const std::vector<ProductStep>& steps, int64_t grain, Range tiles) {
    int64_t before = 0;
    for (const ProductStep& step : steps) {
        const int64_t begin = std::max<int64_t>(tiles.begin - before, 0);
        const int64_t end = std::min(tiles.end - before, step.tiles());
        before += round_up(step.tiles(), grain);
        if (begin < end) {
            step.run({begin, end});
        }
    }
}

/// Tiles that the threads' ranges are multiples of: those that lie together, unless shares so coarse would leave
/// threads idle for more than a twentieth of the time.
int64_t grain_of(const std::vector<ProductStep>& steps, int threads) {
    int64_t grain = 1;
    int64_t tiles = 0;
    for (const ProductStep& step : steps) {
        grain = std::max(grain, step.tiles_together());
        tiles += step.tiles();
    }
    const int64_t longest = round_up((tiles + threads - 1) / threads, grain);
    return threads > 1 && 20 * longest * threads > 21 * tiles ? 1 : grain;
}

/// Tokens that are encoded and multiplied together.
int64_t block_of(const std::vector<Job>& jobs, Phase phase) {
    int64_t block = kMaxTokens;
    for (const Job& job : jobs) {
        for (const Projection& projection : job.projections) {
            if (projection.packed != nullptr) {
                block = std::min(block, tokens_at_once(*kernel_for(*projection.packed, phase, job.tokens)));
            }
        }
    }
    return block;
}

}  // namespace

const float* TensorRows::row(int64_t token, float* scratch) const { return row_of(x_, token, scratch); }

void linear(const std::vector<Job>& jobs, Phase phase, int num_threads, double* input_seconds) {
    thread_local Scratch scratch_of_thread;
    Scratch& scratch = scratch_of_thread;  // the caller's, not the worker's thread_local
    int64_t most = 0;
    for (const Job& job : jobs) {
        most = std::max(most, job.tokens);
        for (const Projection& projection : job.projections) {
            check_shapes(job, projection);
        }
    }
    const int64_t block = block_of(jobs, phase);
    scratch.works.resize(jobs.size());
    scratch.rows.resize(std::max(scratch.rows.size(), jobs.size()));
    for (int64_t first = 0; first < most; first += block) {
        scratch.steps.clear();
        size_t used = 0;
        int64_t weights = 0;
        for (size_t i = 0; i < jobs.size(); ++i) {
            Work& work = scratch.works[i];
            work.job = &jobs[i];
            work.first = first;
            work.tokens = static_cast<int32_t>(std::clamp<int64_t>(jobs[i].tokens - first, 0, block));
            if (work.tokens > 0) {
                make_steps(work, phase, used, scratch);
            }
            for (const Projection& projection : jobs[i].projections) {
                weights += projection.n() * projection.k() * work.tokens;
            }
        }
        const int threads = threads_for(weights, num_threads);
        if (input_seconds == nullptr) {
            encode(scratch.works, threads);
        } else {
            const auto begin = std::chrono::steady_clock::now();
            encode(scratch.works, threads);
            *input_seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
        }
        const int64_t grain = grain_of(scratch.steps, threads);
        int64_t places = 0;
        for (const ProductStep& step : scratch.steps) {
            places += round_up(step.tiles(), grain);
        }
        parallel_for(places, grain, threads, [&](Range range) { run_tiles(scratch.steps, grain, range); });
    }
}

void linear(const Tensor& x, const std::vector<Projection>& projections, Phase phase, int num_threads) {
    const TensorRows rows(x);
    linear({{&rows, x.rows, x.columns, projections}}, phase, num_threads);
}

}  // namespace tmac
