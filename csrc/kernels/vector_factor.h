#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"

// Steps of a Cholesky factorization in double precision. A lane is a row; see kernels/vector_feedback.h.

namespace tmac {
namespace {

inline constexpr int kDoubleLanes = 8;

template <class V, int Columns, int Vectors>
TMAC_ALWAYS_INLINE void subtract_piece(const double* left, const double* right, int64_t count, double* sums) {
    using D = typename V::D;
    D sum[Columns][Vectors];
    TMAC_UNROLL
    for (int i = 0; i < Columns * Vectors; ++i) {
        sum[i / Vectors][i % Vectors] = V::load_f64(sums + i / Vectors * kFactorTile + i % Vectors * kDoubleLanes);
    }
    for (int64_t i = 0; i < count; ++i) {
        D rows[Vectors];
        TMAC_UNROLL
        for (int v = 0; v < Vectors; ++v) {
            rows[v] = V::load_f64(left + i * kFactorTile + v * kDoubleLanes);
        }
        TMAC_UNROLL
        for (int c = 0; c < Columns; ++c) {
            const D factor = V::set1_f64(right[i * kFactorTile + c]);
            TMAC_UNROLL
            for (int v = 0; v < Vectors; ++v) {
                sum[c][v] = V::less_product_f64(sum[c][v], rows[v], factor);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < Columns * Vectors; ++i) {
        V::store_f64(sums + i / Vectors * kFactorTile + i % Vectors * kDoubleLanes, sum[i / Vectors][i % Vectors]);
    }
}

template <class V>
void subtract_products(const double* left, const double* right, int64_t count, double* sums) {
    constexpr int kVectors = V::kRowSums >= 24 ? 3 : 1;
    constexpr int kColumns = V::kRowSums >= 24 ? 8 : 4;
    for (int row = 0; row < kFactorTile; row += kVectors * kDoubleLanes) {
        for (int column = 0; column < kFactorTile; column += kColumns) {
            subtract_piece<V, kColumns, kVectors>(left + row, right + column, count, sums + column * kFactorTile + row);
        }
    }
}

template <class V>
void solve_columns(const double* diagonal, double* sums) {
    for (int row = 0; row < kFactorTile; row += kDoubleLanes) {
        for (int c = 0; c < kFactorTile; ++c) {
            const double* factors = diagonal + c * kFactorTile;
            double* column = sums + c * kFactorTile + row;
            const auto x = V::multiply_f64(V::load_f64(column), V::set1_f64(factors[c]));
            V::store_f64(column, x);
            for (int later = c + 1; later < kFactorTile; ++later) {
                double* to = sums + later * kFactorTile + row;
                V::store_f64(to, V::less_product_f64(V::load_f64(to), x, V::set1_f64(factors[later])));
            }
        }
    }
}

}  // namespace
}  // namespace tmac
