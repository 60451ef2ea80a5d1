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
constexpr int64_t kBlockTiles = 8;  ///< columns, in tiles, that what lies before them is read for at once
constexpr int64_t kNear = 192;      ///< columns of a block's rows that stay in the second cache for all tiles

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
            const int64_t done = block * kTile;
            parallel_for(tiles_ - block, 1, num_threads_, [&](Range range) {
                for (int64_t near = 0; near < done; near += kNear) {
                    for (int64_t tile = block + range.begin; tile < block + range.end; ++tile) {
                        for (int64_t j = block; j < std::min(end, tile + 1); ++j) {
                            update(tile, j, near, std::min(near + kNear, done));
                        }
                    }
                }
            });
            for (int64_t j = block; j < end; ++j) {
                update(j, j, done, j * kTile);
                if (!factor_diagonal(j, least)) {
                    return false;
                }
                each_tile(j + 1, [&](int64_t tile) {
                    update(tile, j, done, j * kTile);
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
                std::fill_n(to, k_ * kFeedbackColumns, 0.0F);
                for (int64_t c = 0; c < std::min<int64_t>(kFeedbackColumns, k_ - strip * kFeedbackColumns); ++c) {
                    const int64_t b = k_ - 1 - strip * kFeedbackColumns - c;
                    const double scale = inverse[static_cast<size_t>(b)];
                    to[(k_ - 1 - b) * kFeedbackColumns + c] = 1.0F;
                    for (int64_t a = b + 1; a < k_;) {
                        const int64_t end = std::min(k_, (a / kTile + 1) * kTile);
                        const double* column = at(a / kTile, b) - a / kTile * kTile;
                        for (; a < end; ++a) {
                            to[(k_ - 1 - a) * kFeedbackColumns + c] = static_cast<float>(column[a] * scale);
                        }
                    }
                }
            }
        });
    }

private:
    /// Column b of a tile of rows.
    double* at(int64_t tile, int64_t b) { return lower_.get() + kTile * (kTile * tile * (tile + 1) / 2 + b); }

    template <class Body>
    void each_tile(int64_t first, const Body& body) {
        parallel_for(tiles_ - first, 1, num_threads_, [&](Range range) {
            for (int64_t tile = first + range.begin; tile < first + range.end; ++tile) {
                body(tile);
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
