#include "ops/two_level_search.h"

#include <algorithm>
#include <cmath>

#include "core/half.h"
#include "core/layout.h"

// Every group has the grid that suits it best, in f32. Super values are those with which the 8-bit values come nearest
// to these grids, tried in a few sizes; then 8-bit values, codes and super values are fitted to the weights in turn.
// What is kept is the least error that stored numbers gave.

namespace tmac {
namespace {

constexpr double kMostSub = 127;
constexpr int32_t kRounds = 2;

/// A finer super value leaves no room above the largest group, a coarser one may hit the others better; the more codes,
/// the more an inexact scale moves the outer ones.
int32_t super_sizes(const QuantSpec& spec) { return spec.bits <= 4 ? 3 : 9; }

QuantSpec with_f32(QuantSpec spec) {
    spec.scale_format = ScaleFormat::f32;
    return spec;
}

/// The f16 value of which 8-bit multiples come up to `largest`; infinite where there is none.
float super_value(double largest, double most) {
    const uint16_t half = f32_to_f16(static_cast<float>(largest / most));
    const float value = f16_to_f32(half);
    const bool reaches = value * (kMostSub + 0.5) >= largest;  // not always below the normal numbers of f16
    return reaches ? value : f16_to_f32(static_cast<uint16_t>(half + 1));
}

double sub_value(double value, float super) {
    return super == 0.0F ? 0.0 : std::clamp(value / double{super}, -kMostSub, kMostSub);
}

}  // namespace

TwoLevelSearch::TwoLevelSearch(const QuantSpec& spec) : spec_(spec) {
    for (int64_t column = 0; column < kSuperColumns; column += spec.group_size) {
        searches_.emplace_back(with_f32(spec), spec.group_size);
    }
}

bool TwoLevelSearch::run(const float* w, const float* importance, int64_t count, uint8_t* codes,
                         const TwoLevelValues& to) {
    groups_ = static_cast<size_t>((count + spec_.group_size - 1) / spec_.group_size);
    std::vector<Grid> wanted(groups_);
    double scale = 0;
    double offset = 0;
    for (size_t i = 0; i < groups_; ++i) {
        const auto begin = static_cast<int64_t>(i) * spec_.group_size;
        searches_[i].load(w + begin, importance == nullptr ? nullptr : importance + begin,
                          std::min<int64_t>(spec_.group_size, count - begin));
        wanted[i] = searches_[i].search();
        if (!searches_[i].found()) {
            return false;
        }
        scale = std::max(scale, std::fabs(double{wanted[i].scale}));
        offset = std::max(offset, std::fabs(double{wanted[i].zero}));
    }
    best_ = {};
    for (int32_t i = 0; i < super_sizes(spec_); ++i) {
        consider({super_value(scale, kMostSub - 3 * i), super_value(offset, kMostSub)}, wanted, false);
    }
    for (int32_t round = 0; round < kRounds && best_.error > 0.0 && best_.error < INFINITY; ++round) {
        consider(best_.supers, wanted, true);
        Supers supers{};
        refit(supers, wanted);
        consider(supers, wanted, true);
    }
    if (!(best_.error < INFINITY)) {
        return false;
    }
    *to.super_scale = f32_to_f16(best_.supers.scale);
    if (to.super_offset != nullptr) {
        *to.super_offset = f32_to_f16(best_.supers.offset);
    }
    for (size_t i = 0; i < groups_; ++i) {
        searches_[i].write_codes(grid_of(best_.groups[i], best_.supers),
                                 codes + static_cast<int64_t>(i) * spec_.group_size);
        to.scales[i] = static_cast<int8_t>(best_.groups[i].scale);
        if (to.offsets != nullptr) {
            to.offsets[i] = static_cast<int8_t>(best_.groups[i].offset);
        }
    }
    return true;
}

Grid TwoLevelSearch::grid_of(const Choice& choice, const Supers& supers) const {
    const float scale = supers.scale * static_cast<float>(choice.scale);
    if (spec_.zero_point == ZeroPoint::fixed) {
        return {scale, spec_.fixed_zero};
    }
    return {scale, -(supers.offset * static_cast<float>(choice.offset))};
}

/// Takes over `choice` where it is better.
void TwoLevelSearch::judge(size_t group, const Supers& supers, Choice choice, Choice& best) const {
    choice.sums = searches_[group].assign(grid_of(choice, supers));
    if (choice.sums.error < best.sums.error) {
        best = choice;
    }
}

/// The 8-bit values of a group near those of a wanted grid; `widely`: both beside the scale, and the offset that fits.
TwoLevelSearch::Choice TwoLevelSearch::choose(size_t group, const Supers& supers, const Grid& wanted,
                                              bool widely) const {
    const GroupSearch& search = searches_[group];
    const bool fixed = spec_.zero_point == ZeroPoint::fixed;
    const auto offset_of = [&](double value) {
        return fixed ? 0 : static_cast<int32_t>(std::nearbyint(sub_value(-value, supers.offset)));
    };
    const double scale = sub_value(wanted.scale, supers.scale);
    Choice best;
    best.sums.error = INFINITY;
    const int32_t reach = spec_.bits <= 4 ? 0 : 2;  // where the last code moves by much, the offset can make up for it
    const double first = widely ? std::max(std::floor(scale) - reach, -kMostSub) : std::nearbyint(scale);
    const double last = widely ? std::min(std::ceil(scale) + reach, kMostSub) : first;
    for (double sub = first; sub <= last; ++sub) {
        Choice choice{static_cast<int32_t>(sub), offset_of(wanted.zero), {}};
        judge(group, supers, choice, best);
        if (widely && !fixed) {
            const GridSums sums = search.assign(grid_of(choice, supers));
            choice.offset = offset_of((search.weights_sum() - sub * supers.scale * sums.c) / search.counts_sum());
            judge(group, supers, choice, best);
        }
    }
    return best;
}

/// Judges super values with the 8-bit values that suit them.
void TwoLevelSearch::consider(const Supers& supers, const std::vector<Grid>& wanted, bool widely) {
    if (!std::isfinite(supers.scale * kMostSub) || !std::isfinite(supers.offset * kMostSub)) {
        return;
    }
    Solution solution;
    solution.supers = supers;
    solution.error = 0;
    for (size_t i = 0; i < groups_; ++i) {
        solution.groups.push_back(choose(i, supers, wanted[i], widely));
        solution.error += solution.groups.back().sums.error;
    }
    if (solution.error < best_.error) {
        best_ = std::move(solution);
    }
}

/// Least squares for the codes of the best so far: of the super values, and of every group for itself.
void TwoLevelSearch::refit(Supers& supers, std::vector<Grid>& wanted) const {
    // w ~ S a - O b, with a the group's 8-bit scale times the code and b its 8-bit offset
    double aa = 0;
    double ab = 0;
    double bb = 0;
    double aw = 0;
    double bw = 0;
    for (size_t i = 0; i < groups_; ++i) {
        const Choice& choice = best_.groups[i];
        const double s = choice.scale;
        const double o = choice.offset;
        aa += s * s * choice.sums.cc;
        ab += s * o * choice.sums.c;
        bb += o * o * searches_[i].counts_sum();
        aw += s * choice.sums.cw;
        bw += o * searches_[i].weights_sum();
        double scale = wanted[i].scale;
        double offset = wanted[i].zero;
        searches_[i].fit(choice.sums, scale, offset);
        wanted[i] = {static_cast<float>(scale), static_cast<float>(offset)};
    }
    supers = best_.supers;
    const double determinant = aa * bb - ab * ab;
    if (spec_.zero_point == ZeroPoint::fixed || determinant <= 0.0) {
        if (aa > 0.0) {
            supers.scale = f16_to_f32(f32_to_f16(static_cast<float>((aw + double{supers.offset} * ab) / aa)));
        }
        return;
    }
    supers.scale = f16_to_f32(f32_to_f16(static_cast<float>((aw * bb - ab * bw) / determinant)));
    supers.offset = f16_to_f32(f32_to_f16(static_cast<float>((aw * ab - aa * bw) / determinant)));
}

}  // namespace tmac
