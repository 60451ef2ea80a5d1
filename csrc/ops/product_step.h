#pragma once

#include <cstdint>

#include "core/range.h"
#include "ops/linear.h"
#include "ops/prepare.h"

namespace tmac {

/// The kernel of a weight's class for `tokens` tokens of a phase.
const Kernel* kernel_for(const WeightView& weight, Phase phase, int64_t tokens);

/// One projection of one block of tokens, cut into tiles of rows that any thread may run.
class ProductStep {
public:
    /// A packed weight, and the block's tokens encoded for it. `first`: the block's first token in y.
    ProductStep(const Projection& projection, const Kernel& kernel, const PreparedInput& input, int64_t first,
                int32_t tokens);

    /// A float weight, and the block's tokens as f32 [tokens, k].
    ProductStep(const Projection& projection, const float* rows, int64_t first, int32_t tokens);

    /// Where results are computed: f32, tokens `stride` apart.
    void set_result(float* result, int64_t stride);

    int32_t tokens() const { return args_.m; }
    int64_t tiles() const { return tiles_; }
    int64_t tiles_together() const { return together_; }

    /// Computes the rows of some tiles and stores them as the projection says.
    void run(Range tiles) const;

private:
    void finish(int64_t begin, int64_t end) const;

    const Projection* projection_;
    const Kernel* kernel_ = nullptr;  ///< null: a float weight
    const PreparedInput* input_ = nullptr;
    const float* rows_ = nullptr;
    int64_t first_;
    QgemmArgs args_{};
    int64_t tiles_;
    int32_t n_tile_;
    int64_t together_;
};

}  // namespace tmac
