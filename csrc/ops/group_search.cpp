#include "ops/group_search.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/half.h"

// The search. A group's grid is w ~ scale * code + offset. Starting grids span the group's range, or a part of it: with
// few codes it pays to clip. Each start is refined by least squares, which is exact for given codes (Lloyd's
// alternation), then rounded to what can be stored, and judged by the error that the stored numbers really give.

namespace tmac {
namespace {

constexpr int32_t kRefinements = 2;
constexpr float kSmallestHalf = 0x1p-24F;
constexpr int32_t kBlock = 32;       ///< columns whose sums stay in f32; plain loops over it vectorize
constexpr float kRound = 0x1.8p23F;  ///< adding and subtracting it rounds to an integer

template <int32_t Width = kBlock / 2>
float fold(float (&values)[kBlock]) {
    for (int32_t j = 0; j < Width; ++j) {
        values[j] += values[j + Width];
    }
    if constexpr (Width > 1) {
        return fold<Width / 2>(values);
    }
    return values[0];
}

/// Numbers that turn a weight into a code and the code into what it stands for.
struct Rounding {
    float inverse;   ///< of the scale
    float shift;     ///< code = round(w * inverse + shift)
    float top;       ///< largest code
    float subtract;  ///< w = (code - subtract) * scale + add
    float scale;
    float add;
    float from;  ///< sums count codes from here
};

Rounding rounding_of(const Grid& grid, const QuantSpec& spec, float top_code) {
    const bool is_offset = spec.zero_point == ZeroPoint::offset;
    Rounding r{};
    r.scale = grid.scale;
    r.inverse = grid.scale == 0.0F ? 0.0F : 1.0F / grid.scale;
    r.shift = is_offset ? -grid.zero * r.inverse : grid.zero;
    r.add = is_offset ? grid.zero : 0.0F;
    r.subtract = is_offset ? 0.0F : grid.zero;
    r.from = spec.zero_point == ZeroPoint::fixed ? spec.fixed_zero : 0.0F;
    r.top = top_code;
    return r;
}

inline float code_of(const Rounding& r, float w) {
    float near = w * r.inverse + r.shift;
    near = near > 0.0F ? near : 0.0F;
    near = near < r.top ? near : r.top;
    return (near + kRound) - kRound;
}

/// Adds up one block; a column counts `counts[j]` times, 0 where it only fills the block up.
void add_block(const Rounding& r, const float* w, const float* counts, GridSums& sums) {
    float error[kBlock];
    float c[kBlock];
    float cc[kBlock];
    float cw[kBlock];
    for (int32_t j = 0; j < kBlock; ++j) {
        const float code = code_of(r, w[j]);
        const float off = (code - r.subtract) * r.scale + r.add - w[j];
        const float from_zero = code - r.from;
        error[j] = off * off * counts[j];
        c[j] = from_zero * counts[j];
        cc[j] = from_zero * c[j];
        cw[j] = c[j] * w[j];
    }
    sums.error += double{fold(error)};
    sums.c += double{fold(c)};
    sums.cc += double{fold(cc)};
    sums.cw += double{fold(cw)};
}

/// The parts of a group's range that starts span.
struct Shares {
    int32_t count;
    double narrowest;  ///< the fewer the codes, the more clipping can pay
};

constexpr Shares kShares[] = {{12, 0.3}, {12, 0.3}, {12, 0.3}, {12, 0.5}, {10, 0.65},
                              {7, 0.8},  {4, 0.9},  {4, 0.95}, {4, 0.97}};  // by bits

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
    : spec_(spec),
      w_(padded(largest_group)),
      counts_(padded(largest_group)),
      top_code_(spec.codebook == Codebook::ternary ? 2.0F : static_cast<float>((1 << spec.bits) - 1)) {}

void GroupSearch::load(const float* w, const float* importance, int64_t count) {
    std::fill(std::copy(w, w + count, w_.begin()), w_.end(), 0.0F);
    std::fill(counts_.begin(), counts_.end(), 0.0F);
    count_ = count;
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
    affine() ? search_affine(*low, *high) : search_fixed(*low, *high);
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
    const Rounding r = rounding_of(grid, spec_, top_code_);
    GridSums sums;
    for (size_t i = 0; i < padded(count_); i += kBlock) {
        add_block(r, w_.data() + i, counts_.data() + i, sums);
    }
    return sums;
}

void GroupSearch::write_codes(const Grid& grid, uint8_t* codes) const {
    const Rounding r = rounding_of(grid, spec_, top_code_);
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
