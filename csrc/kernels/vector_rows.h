#pragma once

#include <utility>

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

namespace tmac {
namespace {

template <class V, FloatType Type>
TMAC_ALWAYS_INLINE typename V::F load_weights(const void* weights, int64_t at) {
    if constexpr (Type == FloatType::f32) {
        return V::load(static_cast<const float*>(weights) + at);
    } else if constexpr (Type == FloatType::f16) {
        return V::load_f16(static_cast<const uint16_t*>(weights) + at);
    } else {
        return V::load_bf16(static_cast<const uint16_t*>(weights) + at);
    }
}

/// The last columns of a row, zero past its end.
template <class V, FloatType Type>
TMAC_ALWAYS_INLINE typename V::F load_some_weights(const void* weights, int64_t at, int64_t count) {
    constexpr size_t kBytes = Type == FloatType::f32 ? 4 : 2;
    uint8_t lanes[kVectorLanes * kBytes] = {};
    std::memcpy(lanes, static_cast<const uint8_t*>(weights) + static_cast<size_t>(at) * kBytes,
                static_cast<size_t>(count) * kBytes);
    return load_weights<V, Type>(lanes, 0);
}

inline constexpr int kRowTile = 4;  ///< rows that all tokens are multiplied with before the next
inline constexpr int kTokensAtOnce = 6;

/// Rows that are multiplied with `tokens` tokens at once: a power of two, at most kRowTile.
template <class V>
constexpr int rows_beside(int tokens) {
    int rows = kRowTile;
    while (rows > 1 && rows * tokens > V::kRowSums) {
        rows /= 2;
    }
    return rows;
}

/// Rows [row, row + Rows) of tokens [token, token + Tokens): a sum of sixteen lanes for each. `ahead`: as many bytes to
/// ask for on the way, or null; asked for one line after the other, the CPU sees a stream and runs ahead of it.
template <class V, FloatType Type, int Rows, int Tokens>
TMAC_ALWAYS_INLINE void multiply_float_rows(const FloatRowsArgs& args, int64_t row, int64_t token,
                                            const uint8_t* ahead) {
    using F = typename V::F;
    constexpr int kStepBytes = Rows * kVectorLanes * (Type == FloatType::f32 ? 4 : 2);
    F sums[Rows][Tokens];
    TMAC_UNROLL
    for (int i = 0; i < Rows * Tokens; ++i) {
        sums[i / Tokens][i % Tokens] = V::set1(0.0F);
    }
    const int64_t k = args.k;
    const float* x = args.x + token * args.x_stride;
    int64_t at = 0;
    for (; at + kVectorLanes <= k; at += kVectorLanes) {
        if (ahead != nullptr) {
            for (int byte = 0; byte < kStepBytes; byte += 64) {
                V::prefetch(ahead + byte);
            }
            ahead += kStepBytes;
        }
        F weights[Rows];
        TMAC_UNROLL
        for (int r = 0; r < Rows; ++r) {
            weights[r] = load_weights<V, Type>(args.weights, (row + r) * k + at);
        }
        TMAC_UNROLL
        for (int t = 0; t < Tokens; ++t) {
            const F values = V::load(x + t * args.x_stride + at);
            TMAC_UNROLL
            for (int r = 0; r < Rows; ++r) {
                sums[r][t] = V::fma(weights[r], values, sums[r][t]);
            }
        }
    }
    for (int t = 0; t < Tokens; ++t) {
        for (int r = 0; r < Rows; ++r) {
            F sum = sums[r][t];
            if (at < k) {
                sum = V::fma(load_some_weights<V, Type>(args.weights, (row + r) * k + at, k - at),
                             load_some<V>(x + t * args.x_stride + at, k - at), sum);
            }
            args.y[(token + t) * args.ldy + row + r] = V::fold(sum);
        }
    }
}

/// A tile of rows with up to kTokensAtOnce tokens.
template <class V, FloatType Type, int Tokens>
TMAC_NOINLINE void multiply_row_tile(const FloatRowsArgs& args, int64_t row, int64_t row_end, int64_t token,
                                     bool first_tokens) {
    for_each_piece<rows_beside<V>(Tokens), 1>(row_end - row, [&]<int Rows>(int64_t at) {
        const uint8_t* ahead = nullptr;
        const int64_t next = row + at + kRowTile;
        if (first_tokens && next + Rows <= args.row_end) {
            ahead = static_cast<const uint8_t*>(args.weights) + next * args.k * (Type == FloatType::f32 ? 4 : 2);
        }
        multiply_float_rows<V, Type, Rows, Tokens>(args, row + at, token, ahead);
    });
}

template <class V, FloatType Type>
TMAC_ALWAYS_INLINE void multiply_floats(const FloatRowsArgs& args) {
    constexpr int64_t kNearBytes = 384 << 10;  // of x, to stay in the L2 cache while the rows pass by
    const int64_t fitting = kNearBytes / (args.k * int64_t{sizeof(float)} + 1) / kTokensAtOnce * kTokensAtOnce;
    const int64_t tile = fitting < kTokensAtOnce ? kTokensAtOnce : fitting;
    for (int64_t first = 0; first < args.m; first += tile) {
        const int64_t last = args.m - first < tile ? args.m : first + tile;
        for (int64_t row = args.row_begin; row < args.row_end; row += kRowTile) {
            const int64_t row_end = args.row_end - row < kRowTile ? args.row_end : row + kRowTile;
            for (int64_t token = first; token < last;) {
                const int32_t count = tokens_in_block(static_cast<int32_t>(last - token), kTokensAtOnce);
                const auto run = [&]<int... Less>(std::integer_sequence<int, Less...>) {
                    ((count == Less + 1
                          ? multiply_row_tile<V, Type, Less + 1>(args, row, row_end, token, token == first)
                          : void()),
                     ...);
                };
                run(std::make_integer_sequence<int, kTokensAtOnce>());
                token += count;
            }
        }
    }
}

template <class V>
void float_rows(const FloatRowsArgs& args) {
    switch (args.type) {
        case FloatType::f32:
            return multiply_floats<V, FloatType::f32>(args);
        case FloatType::f16:
            return multiply_floats<V, FloatType::f16>(args);
        case FloatType::bf16:
            return multiply_floats<V, FloatType::bf16>(args);
    }
}

}  // namespace
}  // namespace tmac
