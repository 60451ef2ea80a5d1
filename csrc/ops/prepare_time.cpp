#include "ops/prepare_time.h"

#include <algorithm>
#include <chrono>

#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/linear.h"
#include "ops/prepare.h"

namespace tmac {

double prepare_seconds(const WeightView& weight, const Tensor& x, int repeats, int num_threads) {
    TMAC_CHECK(x.columns == weight.header.k, "[prepare_seconds] in_features=", x.columns,
               ", but the weight was packed for ", weight.header.k);
    TMAC_CHECK(x.rows > 0 && repeats > 0, "[prepare_seconds] nothing to time: ", x.rows, " tokens, ", repeats,
               " repeats");
    const int threads = num_threads > 0 ? num_threads : get_num_threads();
    const Kernel& kernel = x.rows > kDecodeTokens ? *weight.kernels.prompt : *weight.kernels.decode;
    PreparedInput input;
    const auto prepare_all = [&] {
        for (int64_t first = 0; first < x.rows; first += tokens_at_once(kernel)) {
            const auto tokens = static_cast<int32_t>(std::min(tokens_at_once(kernel), x.rows - first));
            prepare(kernel, weight, x, first, tokens, threads, input);
        }
    };
    prepare_all();  // allocates
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < repeats; ++i) {
        prepare_all();
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    return elapsed.count() / repeats;
}

}  // namespace tmac
