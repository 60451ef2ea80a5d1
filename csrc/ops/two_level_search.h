#pragma once

#include <cstdint>
#include <vector>

#include "ops/group_search.h"

namespace tmac {

/// Where the values of one super-group go (docs/format.md, section 1).
struct TwoLevelValues {
    int8_t* scales;
    int8_t* offsets;         ///< null for a fixed zero
    uint16_t* super_scale;   ///< f16
    uint16_t* super_offset;  ///< f16; null for a fixed zero
};

/// The search for the scales of one super-group of one row: 8-bit values of its groups under f16 values of its own.
class TwoLevelSearch {
public:
    explicit TwoLevelSearch(const QuantSpec& spec);

    /// Writes the codes and the values of `count` weights, at most kSuperColumns; false where a value does not fit f16.
    /// `importance` as GroupSearch::load takes it.
    bool run(const float* w, const float* importance, int64_t count, uint8_t* codes, const TwoLevelValues& to);

private:
    /// What is stored of one group, and what that gives.
    struct Choice {
        int32_t scale = 0;
        int32_t offset = 0;
        GridSums sums;
    };
    struct Supers {
        float scale;
        float offset;
    };
    struct Solution {
        Supers supers{};
        std::vector<Choice> groups;
        double error = INFINITY;
    };

    Grid grid_of(const Choice& choice, const Supers& supers) const;
    void judge(size_t group, const Supers& supers, Choice choice, Choice& best) const;
    Choice choose(size_t group, const Supers& supers, const Grid& wanted, bool widely) const;
    void consider(const Supers& supers, const std::vector<Grid>& wanted, bool widely);
    void refit(Supers& supers, std::vector<Grid>& wanted) const;

    QuantSpec spec_;
    std::vector<GroupSearch> searches_;
    size_t groups_ = 0;
    Solution best_;
};

}  // namespace tmac
