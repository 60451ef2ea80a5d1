#include "ops/group_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/half.h"
#include "kernels/registry.h"

// The search. A group's grid is w ~ scale * code + offset. Starting grids span the group's range, or a part of it: with
// few codes it pays to clip. Each start is refined by least squares, which is exact for given codes (Lloyd's
// alternation), then rounded to what can be stored, and judged by the error that the stored numbers really give.

namespace tmac {
namespace {

constexpr int32_t kRefinements = 2;
constexpr float kSmallestHalf = 0x1p-24F;
constexpr int32_t kBlock = 16;       ///< columns that groups are filled up to
constexpr float kRound = 0x1.8p23F;  ///< adding and subtracting it rounds to an integer

GridRounding rounding_of(const Grid& grid, const QuantSpec& spec, float top_code) {
    const bool is_offset = spec.zero_point == ZeroPoint::offset;
    GridRounding r{};
    r.scale = grid.scale;
    r.inverse = grid.scale == 0.0F ? 0.0F : 1.0F / grid.scale;
    r.shift = is_offset ? -grid.zero * r.inverse : grid.zero;
    r.add = is_offset ? grid.zero : 0.0F;
    r.subtract = is_offset ? 0.0F : grid.zero;
    r.from = spec.zero_point == ZeroPoint::fixed ? spec.fixed_zero : 0.0F;
    r.top = top_code;
    return r;
}

inline float code_of(const GridRounding& r, float w) {
    float near = w * r.inverse + r.shift;
    near = near > 0.0F ? near : 0.0F;
    near = near < r.top ? near : r.top;
    return (near + kRound) - kRound;
}

/// The parts of a group's range that starts span.
struct Shares {
    int32_t count;
    double narrowest;  ///< the fewer the codes, the more clipping can pay
};

constexpr Shares kShares[] = {{12, 0.3}, {12, 0.3}, {12, 0.3}, {12, 0.5}, {10, 0.65},
                              {7, 0.8},  {4, 0.9},  {4, 0.95}, {4, 0.97}};  // by bits

/// How far either end of a group's range is pulled in towards its mean, by itself.
struct Ends {
    int32_t count;
    double step;
};

constexpr Ends kEnds[] = {{6, 0.16}, {6, 0.16}, {6, 0.13}, {5, 0.1}, {4, 0.08},
                          {3, 0.06}, {2, 0.04}, {2, 0.02}, {2, 0.01}};  // by bits

/// Calls start(share) from the full range to the narrowest share, until it says that nothing is left to gain.
template <class Start>
bool for_each_share(const QuantSpec& spec, const Start& start) {
    const Shares& shares = kShares[spec.bits];
    for (int32_t i = 0; i < shares.count; ++i) {
        if (start(1.0 - (1.0 - shares.narrowest) * i / (shares.count - 1))) {
            return true;
        }
    }
    return false;
}

size_t padded(int64_t count) { return static_cast<size_t>((count + kBlock - 1) / kBlock * kBlock); }

}  // namespace

GroupSearch::GroupSearch(const QuantSpec& spec, int64_t largest_group)
    : ops_(vector_ops()),
      spec_(spec),
      w_(padded(largest_group)),
      counts_(padded(largest_group)),
      top_code_(spec.codebook == Codebook::ternary ? 2.0F : static_cast<float>((1 << spec.bits) - 1)) {}

void GroupSearch::load(const float* w, const float* importance, int64_t count) {
    std::fill(std::copy(w, w + count, w_.begin()), w_.end(), 0.0F);
    std::fill(counts_.begin(), counts_.end(), 0.0F);
    count_ = count;
    weighted_ = importance != nullptr;
    if (importance != nullptr) {
        std::copy(importance, importance + count, counts_.begin());
        counts_sum_ = std::accumulate(importance, importance + count, 0.0);
        weights_sum_ = std::inner_product(w, w + count, importance, 0.0, std::plus<>(),
                                          [](double weight, double times) { return weight * times; });
        return;
    }
    if (by_magnitude()) {
        std::transform(w, w + count, counts_.begin(), [](float value) { return std::fabs(value); });
    } else {
        std::fill_n(counts_.begin(), static_cast<size_t>(count), 1.0F);
    }
    counts_sum_ = static_cast<double>(count);
    weights_sum_ = std::accumulate(w, w + count, 0.0);
}

Grid GroupSearch::search() {
    best_error_ = INFINITY;
    const auto end = w_.begin() + count_;
    const auto [low, high] = std::minmax_element(w_.begin(), end);
    if (weighted_) {
        search_weighted(*low, *high);
    } else {
        affine() ? search_affine(*low, *high) : search_fixed(*low, *high);
    }
    return best_;
}

/// Counts every weight alike, the least squares of a grid around a fixed zero clip the largest weights, which costs
/// a model more than it saves (SmolLM2-135M, 4 bits, group 64: perplexity 20.0, by magnitude 17.4). With fewer than
/// 3 bits there is nothing but clipping, and with an offset the grid reaches both ends anyway.
bool GroupSearch::by_magnitude() const { return !affine() && spec_.bits >= 3; }

float GroupSearch::stored(float value) const {
    return spec_.scale_format == ScaleFormat::f32 ? value : f16_to_f32(f32_to_f16(value));
}

/// The nearest grid that can be stored. A scale below the smallest half becomes that, not zero.
Grid GroupSearch::storable(double scale, double offset) const {
    float s = stored(static_cast<float>(scale));
    if (s == 0.0F && scale != 0.0 && spec_.scale_format == ScaleFormat::f16) {
        s = std::copysign(kSmallestHalf, static_cast<float>(scale));
    }
    if (spec_.zero_point == ZeroPoint::fixed) {
        return {s, spec_.fixed_zero};
    }
    if (spec_.zero_point == ZeroPoint::offset) {
        return {s, stored(static_cast<float>(offset))};
    }
    const double zero = s == 0.0F ? 0.0 : -offset / s;
    if (spec_.zero_point == ZeroPoint::real) {
        return {s, stored(static_cast<float>(zero))};
    }
    return {s, static_cast<float>(std::clamp(std::nearbyint(zero), 0.0, double{top_code_}))};
}

GridSums GroupSearch::assign(const Grid& grid) const {
    return ops_.grid_sums(rounding_of(grid, spec_, top_code_), w_.data(), counts_.data(),
                          static_cast<int64_t>(padded(count_)));
}

void GroupSearch::write_codes(const Grid& grid, uint8_t* codes) const {
    const GridRounding r = rounding_of(grid, spec_, top_code_);
    for (int64_t i = 0; i < count_; ++i) {
        codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code_of(r, w_[static_cast<size_t>(i)])));
    }
}

bool GroupSearch::fit(const GridSums& sums, double& scale, double& offset) const {
    if (!affine()) {
        scale = sums.cw / sums.cc;
        return sums.cc != 0.0;
    }
    const double determinant = counts_sum_ * sums.cc - sums.c * sums.c;
    if (determinant <= 0.0) {
        return false;
    }
    scale = (counts_sum_ * sums.cw - sums.c * weights_sum_) / determinant;
    offset = (weights_sum_ - scale * sums.c) / counts_sum_;
    return true;
}

/// Judges a start and its refinements; true when nothing is left to gain.
bool GroupSearch::consider(double scale, double offset) {
    Grid last{NAN, NAN};
    for (int32_t round = 0; round <= kRefinements; ++round) {
        const Grid grid = storable(scale, offset);
        const bool settled = grid.scale == last.scale && grid.zero == last.zero;
        if (settled || !std::isfinite(grid.scale) || !std::isfinite(grid.zero)) {
            break;
        }
        last = grid;
        const GridSums sums = assign(grid);
        if (sums.error < best_error_) {
            best_error_ = sums.error;
            best_ = grid;
        }
        if (best_error_ == 0.0 || !fit(sums, scale, offset)) {
            break;
        }
    }
    return best_error_ == 0.0;
}

/// Judges a start without refining it.
void GroupSearch::start(double scale, double offset) {
    const Grid grid = storable(scale, offset);
    if (!std::isfinite(grid.scale) || !std::isfinite(grid.zero)) {
        return;
    }
    const auto size = static_cast<int64_t>(padded(count_));
    Start found{double{ops_.grid_error(rounding_of(grid, spec_, top_code_), w_.data(), counts_.data(), size)}, grid};
    for (Start& kept : starts_) {
        if (found.error < kept.error) {
            std::swap(found, kept);
        }
    }
}

/// Refines the best starts by least squares as long as that helps, a few rounds at most.
void GroupSearch::refine_starts() {
    constexpr int32_t kRounds = 4;
    for (const Start& from : starts_) {
        if (!(from.error < INFINITY)) {
            break;
        }
        Grid grid = from.grid;
        double last = INFINITY;
        for (int32_t round = 0; round <= kRounds; ++round) {
            const GridSums sums = assign(grid);
            if (sums.error < best_error_) {
                best_error_ = sums.error;
                best_ = grid;
            }
            double scale = 0;
            double offset = 0;
            if (!(sums.error < last) || sums.error == 0.0 || !fit(sums, scale, offset)) {
                break;
            }
            last = sums.error;
            grid = storable(scale, offset);
            if (!std::isfinite(grid.scale) || !std::isfinite(grid.zero)) {
                break;
            }
        }
    }
}

/// Where a few columns count most, either end may be worth clipping without the other.
void GroupSearch::search_weighted(float low, float high) {
    starts_.fill({INFINITY, {}});
    if (affine()) {
        const double middle = weights_sum_ / counts_sum_;
        start(0.0, middle);
        const auto between = [&](double from, double to) {
            const double step = kEnds[spec_.bits].step;
            for (int32_t i = 0; i < kEnds[spec_.bits].count; ++i) {
                for (int32_t j = 0; j < kEnds[spec_.bits].count; ++j) {
                    const double bottom = from + i * step * (middle - from);
                    const double top = to + j * step * (middle - to);
                    start((top - bottom) / double{top_code_}, bottom);
                }
            }
        };
        between(low, high);
        if (spec_.zero_point != ZeroPoint::offset && (low > 0.0F || high < 0.0F)) {
            between(std::min(low, 0.0F), std::max(high, 0.0F));
        }
    } else {
        const double extreme = -double{low} > double{high} ? double{low} : double{high};
        for (const double level : {-double{spec_.fixed_zero}, double{top_code_} - double{spec_.fixed_zero}}) {
            if (level != 0.0) {
                for_each_share(spec_, [&](double share) {
                    start(extreme * share / level, 0.0);
                    return false;
                });
            }
        }
    }
    refine_starts();
}

/// A zero is stored as a code (integer) or in codes (real): only a range that holds 0 always has one near by.
void GroupSearch::search_affine(float low, float high) {
    consider(0.0, weights_sum_ / counts_sum_);
    span(low, high);
    if (spec_.zero_point != ZeroPoint::offset && (low > 0.0F || high < 0.0F)) {
        span(std::min(low, 0.0F), std::max(high, 0.0F));
    }
}

void GroupSearch::span(float low, float high) {
    const double middle = (double{low} + double{high}) / 2;
    const double half = (double{high} - double{low}) / 2;
    for_each_share(spec_,
                   [&](double share) { return consider(2 * half * share / double{top_code_}, middle - half * share); });
}

/// Either end of the code range may hold the weight of the largest magnitude; a negative scale is as good.
void GroupSearch::search_fixed(float low, float high) {
    const double extreme = -double{low} > double{high} ? double{low} : double{high};
    const double levels[] = {-double{spec_.fixed_zero}, double{top_code_} - double{spec_.fixed_zero}};
    for (const double level : levels) {
        if (level != 0.0 &&
            for_each_share(spec_, [&](double share) { return consider(extreme * share / level, 0.0); })) {
            return;
        }
    }
}

}  // namespace tmac
