#include "ops/round_to_nearest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/check.h"
#include "core/half.h"
#include "core/thread_pool.h"
#include "ops/group_search.h"
#include "ops/two_level_search.h"

namespace tmac {
namespace {

void store(std::vector<uint8_t>& values, GroupType type, size_t index, float value) {
    if (type == GroupType::u8) {
        values[index] = static_cast<uint8_t>(value);
    } else if (type == GroupType::f16) {
        const uint16_t half = f32_to_f16(value);
        std::memcpy(values.data() + index * 2, &half, 2);
    } else {
        std::memcpy(values.data() + index * 4, &value, 4);
    }
}

/// Weights that are not zero but so small that f16 scales would leave little or nothing of them.
void check_size(const float* weight, int64_t count, const QuantSpec& spec) {
    constexpr float kSmallest = 0x1p-20F;  // sixteen of the smallest half
    const float largest = std::accumulate(weight, weight + count, 0.0F,
                                          [](float so_far, float value) { return std::max(so_far, std::fabs(value)); });
    TMAC_CHECK(spec.scale_format == ScaleFormat::f32 || largest == 0.0F || largest >= kSmallest,
               "[round_to_nearest] the largest weight, ", largest,
               ", is below what f16 scales resolve: use "
               "scale_format='f32'");
}

QuantizedRows allocate(int64_t n, int64_t k, const QuantSpec& spec) {
    QuantizedRows out{};
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    out.scale_type = scale_type_of(spec.scale_format);
    if (spec.zero_point != ZeroPoint::fixed) {
        out.zero_type = spec.zero_point == ZeroPoint::integer ? GroupType::u8 : out.scale_type;
    }
    const auto values = static_cast<size_t>(n * num_groups(spec, k));
    out.codes.resize(static_cast<size_t>(n * k));
    out.scales.resize(values * static_cast<size_t>(element_bytes(out.scale_type)));
    out.zeros.resize(values * static_cast<size_t>(element_bytes(out.zero_type)));
    if (two_level) {
        out.super_scales.resize(static_cast<size_t>(n * num_super_groups(k)));
        out.super_offsets.resize(spec.zero_point == ZeroPoint::offset ? out.super_scales.size() : 0);
    }
    return out;
}

/// The importance of columns as a search takes it: the largest is 1, and none is so small that a grid may lose its
/// weights altogether.
void scale_importance(float* importance, int64_t count) {
    constexpr float kLittle = 0x1p-20F;
    const float largest = *std::max_element(importance, importance + count);
    std::transform(importance, importance + count, importance,
                   [=](float value) { return largest > 0.0F ? std::max(value / largest, kLittle) : 1.0F; });
}

/// What the rows of a weight are rounded with.
struct Request {
    const float* weight;
    int64_t k;
    const QuantSpec& spec;
    int64_t groups;
    int64_t size;             ///< columns of a group
    const float* importance;  ///< [k], scaled; or null

    const float* importance_from(int64_t column) const { return importance == nullptr ? nullptr : importance + column; }
};

void round_row(const Request& request, int64_t row, GroupSearch& search, QuantizedRows& out) {
    const float* w = request.weight + row * request.k;
    for (int64_t group = 0; group < request.groups; ++group) {
        const int64_t begin = group * request.size;
        search.load(w + begin, request.importance_from(begin), std::min(request.size, request.k - begin));
        const Grid grid = search.search();
        TMAC_CHECK(search.found(), "[round_to_nearest] the scale of row ", row, ", group ", group, " does not fit ",
                   out.scale_type == GroupType::f16 ? "f16: use scale_format='f32'" : "f32");
        search.write_codes(grid, out.codes.data() + row * request.k + begin);
        const auto index = static_cast<size_t>(row * request.groups + group);
        store(out.scales, out.scale_type, index, grid.scale);
        if (out.zero_type != GroupType::none) {
            store(out.zeros, out.zero_type, index, grid.zero);
        }
    }
}

void round_row(const Request& request, int64_t row, TwoLevelSearch& search, QuantizedRows& out) {
    const float* w = request.weight + row * request.k;
    const int64_t super_groups = num_super_groups(request.k);
    for (int64_t i = 0; i < super_groups; ++i) {
        const int64_t begin = i * kSuperColumns;
        const int64_t first = row * request.groups + begin / request.size;
        const auto super = static_cast<size_t>(row * super_groups + i);
        TwoLevelValues to{reinterpret_cast<int8_t*>(out.scales.data()) + first, nullptr, &out.super_scales[super],
                          nullptr};
        if (!out.super_offsets.empty()) {
            to.offsets = reinterpret_cast<int8_t*>(out.zeros.data()) + first;
            to.super_offset = &out.super_offsets[super];
        }
        const bool fits =
            search.run(w + begin, request.importance_from(begin), std::min<int64_t>(kSuperColumns, request.k - begin),
                       out.codes.data() + row * request.k + begin, to);
        TMAC_CHECK(fits, "[round_to_nearest] the super values of row ", row, ", columns from ", begin,
                   " do not fit f16: use scale_format='f32'");
    }
}

template <class Search>
void round_rows(const Request& request, Range rows, Search& search, QuantizedRows& out) {
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const float* w = request.weight + row * request.k;
        TMAC_CHECK(std::all_of(w, w + request.k, [](float value) { return std::isfinite(value); }),
                   "[round_to_nearest] row ", row, " of the weight holds a NaN or an infinity");
        round_row(request, row, search, out);
    }
}

}  // namespace

QuantizedRows round_to_nearest(const float* weight, int64_t n, int64_t k, const QuantSpec& spec, int num_threads,
                               const float* importance) {
    validate(spec);
    check_size(weight, n * k, spec);
    QuantizedRows out = allocate(n, k, spec);
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    const int64_t size = spec.group_size == -1 ? k : std::min<int64_t>(spec.group_size, k);
    std::vector<float> scaled;
    if (importance != nullptr) {
        TMAC_CHECK(
            std::all_of(importance, importance + k, [](float value) { return std::isfinite(value) && value >= 0.0F; }),
            "[round_to_nearest] importance holds a number that is negative or not finite");
        scaled.assign(importance, importance + k);
        const int64_t span = two_level ? kSuperColumns : size;
        for (int64_t begin = 0; begin < k; begin += span) {
            scale_importance(scaled.data() + begin, std::min(span, k - begin));
        }
    }
    const Request request{weight, k, spec, num_groups(spec, k), size, importance == nullptr ? nullptr : scaled.data()};
    parallel_for(n, 1, num_threads, [&](Range rows) {
        if (two_level) {
            TwoLevelSearch search(spec);
            round_rows(request, rows, search, out);
        } else {
            GroupSearch search(spec, size);
            round_rows(request, rows, search, out);
        }
    });
    return out;
}

}  // namespace tmac
