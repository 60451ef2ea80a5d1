#pragma once

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

/// Rows [row, row + Rows) of tokens [token, token + Tokens): a sum of sixteen lanes for each.
template <class V, FloatType Type, int Rows, int Tokens>
TMAC_ALWAYS_INLINE void multiply_float_rows(const FloatRowsArgs& args, int64_t row, int64_t token) {
    using F = typename V::F;
    F sums[Rows][Tokens];
    TMAC_UNROLL
    for (int i = 0; i < Rows * Tokens; ++i) {
        sums[i / Tokens][i % Tokens] = V::set1(0.0F);
    }
    const int64_t k = args.k;
    const float* x = args.x + token * args.x_stride;
    int64_t at = 0;
    for (; at + kVectorLanes <= k; at += kVectorLanes) {
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

template <class V, FloatType Type>
TMAC_ALWAYS_INLINE void multiply_floats(const FloatRowsArgs& args) {
    constexpr int64_t kNearBytes = 384 << 10;  // of x, to stay in the L2 cache while the rows pass by
    const int64_t fitting = kNearBytes / (args.k * int64_t{sizeof(float)} + 1) / V::kRowTokens * V::kRowTokens;
    const int64_t tile = fitting < V::kRowTokens ? V::kRowTokens : fitting;
    for (int64_t first = 0; first < args.m; first += tile) {
        const int64_t tokens = args.m - first < tile ? args.m - first : tile;
        const int64_t rows = args.row_end - args.row_begin;
        for_each_piece<4, 1>(rows, [&]<int Rows>(int64_t row) {
            constexpr int kTokens = Rows == 1 ? 1 : V::kRowTokens;
            for_each_piece<kTokens, 2, 1>(tokens, [&]<int Tokens>(int64_t token) {
                multiply_float_rows<V, Type, Rows, Tokens>(args, args.row_begin + row, first + token);
            });
        });
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
