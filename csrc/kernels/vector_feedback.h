#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

// A lane is a row of the weight: every row has its own chain of additions, in the order of the columns, however the
// columns are cut into pieces.

namespace tmac {
namespace {

template <class V, int Columns, int Vectors>
TMAC_ALWAYS_INLINE void feed_piece(const float* errors, int64_t count, const float* feedback, float* targets) {
    using F = typename V::F;
    F sums[Columns][Vectors];
    TMAC_UNROLL
    for (int i = 0; i < Columns * Vectors; ++i) {
        sums[i / Vectors][i % Vectors] = V::load(targets + i / Vectors * kFeedbackRows + i % Vectors * kVectorLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
        F error[Vectors];
        TMAC_UNROLL
        for (int v = 0; v < Vectors; ++v) {
            error[v] = V::load(errors + i * kFeedbackRows + v * kVectorLanes);
        }
        TMAC_UNROLL
        for (int c = 0; c < Columns; ++c) {
            const F factor = V::set1(feedback[i * kFeedbackColumns + c]);
            TMAC_UNROLL
            for (int v = 0; v < Vectors; ++v) {
                sums[c][v] = V::fma(error[v], factor, sums[c][v]);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < Columns * Vectors; ++i) {
        V::store(targets + i / Vectors * kFeedbackRows + i % Vectors * kVectorLanes, sums[i / Vectors][i % Vectors]);
    }
}

/// Where registers are few, four columns of sixteen rows, else eight of all.
template <class V>
void feed_back(const float* errors, int64_t count, const float* feedback, float* targets, int32_t columns) {
    constexpr int kVectors = V::kRowSums >= 24 ? 3 : 1;
    constexpr int kWide = V::kRowSums >= 24 ? 8 : 4;
    for (int32_t row = 0; row < kFeedbackRows; row += kVectors * kVectorLanes) {
        for_each_piece<kWide, 4, 1>(columns, [&]<int Columns>(int64_t at) {
            feed_piece<V, Columns, kVectors>(errors + row, count, feedback + at, targets + at * kFeedbackRows + row);
        });
    }
}

/// Nearest integer of a number below 2^22.
template <class V>
TMAC_ALWAYS_INLINE typename V::F nearest_integer(typename V::F x) {
    const auto magic = V::set1(0x1.8p23F);  // adding and subtracting it rounds
    return V::subtract(V::add(x, magic), magic);
}

template <class V>
TMAC_ALWAYS_INLINE typename V::F clamp_code(typename V::F x, typename V::F top) {
    const auto low = V::max(x, V::set1(0.0F));  // 0 where x is NaN
    return nearest_integer<V>(V::select_less(low, top, low, top));
}

template <class V>
void round_columns(const TileGrid& grid, float top, const float* feedback, int32_t columns, float* targets,
                   float* errors, float* codes) {
    using F = typename V::F;
    for (int32_t row = 0; row < kFeedbackRows; row += kVectorLanes) {
        const F scale = V::load(grid.scale + row);
        const F inverse = V::load(grid.inverse + row);
        const F shift = V::load(grid.shift + row);
        const F subtract = V::load(grid.subtract + row);
        const F add = V::load(grid.add + row);
        for (int32_t j = 0; j < columns; ++j) {
            const int32_t at = j * kFeedbackRows + row;
            const F code = clamp_code<V>(V::fma(V::load(targets + at), inverse, shift), V::set1(top));
            const F value = V::add(V::multiply(V::subtract(code, subtract), scale), add);
            const F error = V::subtract(V::load(errors + at), value);
            V::store(codes + at, code);
            V::store(errors + at, error);
            for (int32_t c = j + 1; c < columns; ++c) {
                float* target = targets + c * kFeedbackRows + row;
                V::store(target, V::fma(error, V::set1(feedback[j * kFeedbackColumns + c]), V::load(target)));
            }
        }
    }
}

}  // namespace
}  // namespace tmac
