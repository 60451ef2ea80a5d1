#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/quant_spec.h"
#include "kernels/vector_ops.h"

namespace tmac {

/// w ~ (code - zero) * scale, or code * scale + zero where the spec has offsets.
struct Grid {
    float scale;
    float zero;  ///< ZeroPoint::offset: the offset; else the zero
};

/// The search for the grid of one group of one row, with the buffers that it needs.
class GroupSearch {
public:
    GroupSearch(const QuantSpec& spec, int64_t largest_group);

    /// Takes a group of `count` weights. `importance`: how much the squared error of each column counts, not all 0;
    /// null: by magnitude for symmetric grids of 3 bits and more, alike for all others.
    void load(const float* w, const float* importance, int64_t count);

    /// The grid with the least error of all that the starts lead to. found() says whether any could be stored.
    Grid search();
    bool found() const { return best_error_ < INFINITY; }

    /// Sums of a grid, which has to be finite.
    GridSums assign(const Grid& grid) const;

    /// Least squares for the codes that gave `sums`; false where they do not determine a grid.
    bool fit(const GridSums& sums, double& scale, double& offset) const;

    /// The codes of a grid, as assign() has them.
    void write_codes(const Grid& grid, uint8_t* codes) const;

    double counts_sum() const { return counts_sum_; }
    double weights_sum() const { return weights_sum_; }

private:
    bool affine() const { return spec_.zero_point != ZeroPoint::fixed; }
    bool by_magnitude() const;
    float stored(float value) const;
    Grid storable(double scale, double offset) const;
    bool consider(double scale, double offset);
    void start(double scale, double offset);
    void refine_starts();
    void search_weighted(float low, float high);
    void search_affine(float low, float high);
    void span(float low, float high);
    void search_fixed(float low, float high);

    /// A start that may be worth refining.
    struct Start {
        double error;
        Grid grid;
    };

    const GridOps& ops_;
    QuantSpec spec_;
    std::vector<float> w_;       ///< the group's weights, zero past its end
    std::vector<float> counts_;  ///< how often each counts, 0 past its end
    float top_code_;
    int64_t count_ = 0;
    double counts_sum_ = 0;
    double weights_sum_ = 0;         ///< every weight as often as it counts
    bool weighted_ = false;          ///< by importance
    std::array<Start, 3> starts_{};  ///< the best so far, the least error first
    double best_error_ = 0;
    Grid best_{};
};

}  // namespace tmac
