#include "ops/hessian_factor.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "kernels/vector_ops.h"

// Reversing the order of rows and columns turns U D U^T into the usual L L^T: U[i][j] is L[a][b] / L[b][b], where the
// sums a + i and b + j are k - 1. The lower triangle lies in tiles of 24 rows, each column of a tile in one piece, as
// the kernels read it from both sides. A block of columns is brought up to date with all columns before it, then
// factored tile by tile: the tile on the diagonal first, which the tiles below need.

namespace tmac {
namespace {

constexpr int64_t kTile = kFactorTile;
constexpr int64_t kBlockTiles = 4;  ///< columns, in tiles, that what lies before them is read for at once
constexpr int64_t kNear = 64;       ///< columns of two tiles that stay in the first cache

class Factorization {
public:
    Factorization(int64_t k, int num_threads)
        : k_(k),
          tiles_((k + kTile - 1) / kTile),
          num_threads_(num_threads),
          ops_(vector_ops()),
          lower_(
              std::make_unique_for_overwrite<double[]>(static_cast<size_t>(kTile * kTile * tiles_ * (tiles_ + 1) / 2))),
          inverses_(kTile * kTile) {}

    void load(const float* hessian, const int64_t* order, const double* extra) {
        each_tile(0, [&](int64_t tile) {
            for (int64_t b = 0; b < (tile + 1) * kTile; ++b) {
                double* column = at(tile, b);
                for (int64_t r = 0; r < kTile; ++r) {
                    const int64_t a = tile * kTile + r;
                    if (a >= k_ || b >= k_) {
                        column[r] = a == b ? 1.0 : 0.0;
                        continue;
                    }
                    const int64_t from = order[k_ - 1 - a];
                    const double value = hessian[order[k_ - 1 - b] * k_ + from];
                    column[r] = a == b ? value + extra[from] : value;
                }
            }
        });
    }

    bool run(double least) {
        for (int64_t block = 0; block < tiles_; block += kBlockTiles) {
            const int64_t end = std::min(tiles_, block + kBlockTiles);
            each_tile(block, [&](int64_t tile) {
                for (int64_t near = 0; near < block * kTile; near += kNear) {
                    for (int64_t j = block; j < std::min(end, tile + 1); ++j) {
                        update(tile, j, near, std::min(near + kNear, block * kTile));
                    }
                }
            });
            for (int64_t j = block; j < end; ++j) {
                update(j, j, block * kTile, j * kTile);
                if (!factor_diagonal(j, least)) {
                    return false;
                }
                each_tile(j + 1, [&](int64_t tile) {
                    update(tile, j, block * kTile, j * kTile);
                    ops_.solve_columns(inverses_.data(), at(tile, j * kTile));
                });
            }
        }
        return true;
    }

    void write(float* strips, float* pivots) {
        std::vector<double> inverse(static_cast<size_t>(k_));
        for (int64_t b = 0; b < k_; ++b) {
            const double pivot = at(b / kTile, b)[b % kTile];
            inverse[static_cast<size_t>(b)] = 1.0 / pivot;
            pivots[k_ - 1 - b] = static_cast<float>(pivot * pivot);
        }
        const int64_t count = (k_ + kFeedbackColumns - 1) / kFeedbackColumns;
        parallel_for(count, 1, num_threads_, [&](Range range) {
            for (int64_t strip = range.begin; strip < range.end; ++strip) {
                float* to = strips + strip * k_ * kFeedbackColumns;
                for (int64_t i = 0; i < k_; ++i) {
                    for (int64_t c = 0; c < kFeedbackColumns; ++c) {
                        const int64_t j = strip * kFeedbackColumns + c;
                        to[i * kFeedbackColumns + c] = i < j && j < k_ ? scaled(i, j, inverse) : i == j ? 1.0F : 0.0F;
                    }
                }
            }
        });
    }

private:
    /// Column b of a tile of rows.
    double* at(int64_t tile, int64_t b) { return lower_.get() + kTile * (kTile * tile * (tile + 1) / 2 + b); }

    float scaled(int64_t i, int64_t j, const std::vector<double>& inverse) {
        const int64_t a = k_ - 1 - i;
        const int64_t b = k_ - 1 - j;
        return static_cast<float>(at(a / kTile, b)[a % kTile] * inverse[static_cast<size_t>(b)]);
    }

    template <class Body>
    void each_tile(int64_t first, const Body& body) {
        // Tiles further down have more to do where a row is longer: each thread takes every other one.
        const int64_t count = tiles_ - first;
        const int64_t parts = std::min<int64_t>(count, 64);
        parallel_for(parts, 1, num_threads_, [&](Range range) {
            for (int64_t part = range.begin; part < range.end; ++part) {
                for (int64_t tile = first + part; tile < tiles_; tile += parts) {
                    body(tile);
                }
            }
        });
    }

    /// Takes columns [from, until) times their transpose off the tile of rows `tile` and columns of tile `j`.
    void update(int64_t tile, int64_t j, int64_t from, int64_t until) {
        ops_.subtract_products(at(tile, from), at(j, from), until - from, at(tile, j * kTile));
    }

    bool factor_diagonal(int64_t tile, double least) {
        double* columns = at(tile, tile * kTile);
        for (int64_t c = 0; c < kTile; ++c) {
            const double pivot = columns[c * kTile + c];
            if (tile * kTile + c < k_ && !(pivot > least)) {  // what fills up the last tile has pivots of 1
                return false;
            }
            const double root = std::sqrt(pivot);
            const double inverse = 1.0 / root;
            for (int64_t r = 0; r < kTile; ++r) {
                double& value = columns[c * kTile + r];
                value = r < c ? 0.0 : r == c ? root : value * inverse;
                inverses_[static_cast<size_t>(c * kTile + r)] = r == c ? inverse : value;
            }
            for (int64_t later = c + 1; later < kTile; ++later) {
                for (int64_t r = later; r < kTile; ++r) {
                    columns[later * kTile + r] -= columns[c * kTile + r] * columns[c * kTile + later];
                }
            }
        }
        return true;
    }

    int64_t k_;
    int64_t tiles_;
    int num_threads_;
    const VectorOps& ops_;
    std::unique_ptr<double[]> lower_;
    std::vector<double> inverses_;  ///< the tile on the diagonal, with 1 / L[c][c] at [c][c]
};

}  // namespace

bool factor_hessian(const float* hessian, const int64_t* order, const double* extra, int64_t k, double least,
                    float* strips, float* pivots, int num_threads) {
    Factorization factorization(k, num_threads);
    factorization.load(hessian, order, extra);
    if (!factorization.run(least)) {
        return false;
    }
    factorization.write(strips, pivots);
    return true;
}

}  // namespace tmac
