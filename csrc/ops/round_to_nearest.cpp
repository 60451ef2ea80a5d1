#include "ops/round_to_nearest.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "core/half.h"
#include "core/thread_pool.h"

// The search. A group's grid is w ~ scale * code + offset. Starting grids span the group's range, or a part of it: with
// few codes it pays to clip. Each start is refined by least squares, which is exact for given codes (Lloyd's
// alternation), then rounded to what can be stored, and judged by the error that the stored numbers really give.

namespace tmac {
namespace {

struct Grid {
    float scale;
    float zero;    ///< ZeroPoint::offset: the offset; else the zero
};

struct Moments {
    double codes = 0;          ///< sum of codes (counted from the zero where that is fixed)
    double codes_squared = 0;
    double weights = 0;
    double products = 0;
};

constexpr int32_t kRefinements = 2;
constexpr int32_t kBlock = 64;  ///< columns whose sums stay in f32

/// One group of one row, with the buffers that the search needs.
class GroupSearch {
public:
    GroupSearch(const QuantSpec& spec, int64_t largest_group)
        : spec_(spec), trial_(static_cast<size_t>(largest_group)) {
        top_code_ = spec.codebook == Codebook::ternary ? 2.0F : static_cast<float>((1 << spec.bits) - 1);
    }

    /// Writes the group's codes and returns its grid.
    Grid run(const float* w, int64_t count, uint8_t* codes) {
        w_ = w;
        count_ = count;
        codes_ = codes;
        best_error_ = INFINITY;
        const auto [low, high] = std::minmax_element(w, w + count);
        spec_.zero_point == ZeroPoint::fixed ? search_fixed(*low, *high) : search_affine(*low, *high);
        return best_;
    }

    /// Whether any grid of the last run could be stored.
    bool found() const { return best_error_ < INFINITY; }

private:
    bool affine() const { return spec_.zero_point != ZeroPoint::fixed; }

    float stored(float value) const {
        return spec_.scale_format == ScaleFormat::f32 ? value : f16_to_f32(f32_to_f16(value));
    }

    /// The nearest grid that can be stored.
    Grid storable(double scale, double offset) const {
        const float s = stored(static_cast<float>(scale));
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

    /// Codes of the grid into trial_; returns the squared error of the weights they stand for.
    double assign(const Grid& grid) {
        const bool is_offset = spec_.zero_point == ZeroPoint::offset;
        const float inverse = grid.scale == 0.0F ? 0.0F : 1.0F / grid.scale;
        const float shift = is_offset ? -grid.zero * inverse : grid.zero;
        const float add = is_offset ? grid.zero : 0.0F;
        const float subtract = is_offset ? 0.0F : grid.zero;
        constexpr float kRound = 0x1.8p23F;  // adding and subtracting it rounds to an integer
        double error = 0;
        for (int64_t begin = 0; begin < count_; begin += kBlock) {
            const int64_t end = std::min(count_, begin + kBlock);
            float lanes[4] = {};
            for (int64_t i = begin; i < end; ++i) {
                const float near = std::min(std::max(w_[i] * inverse + shift, 0.0F), top_code_);
                const float code = (near + kRound) - kRound;
                const float off = (code - subtract) * grid.scale + add - w_[i];
                trial_[static_cast<size_t>(i)] = code;
                lanes[i & 3] += off * off;
            }
            error += double{lanes[0] + lanes[1]} + double{lanes[2] + lanes[3]};
        }
        return error;
    }

    Moments moments() const {
        const float from = affine() ? 0.0F : spec_.fixed_zero;
        Moments sums;
        for (int64_t begin = 0; begin < count_; begin += kBlock) {
            const int64_t end = std::min(count_, begin + kBlock);
            float c1[4] = {};
            float c2[4] = {};
            float w1[4] = {};
            float cw[4] = {};
            for (int64_t i = begin; i < end; ++i) {
                const float code = trial_[static_cast<size_t>(i)] - from;
                c1[i & 3] += code;
                c2[i & 3] += code * code;
                w1[i & 3] += w_[i];
                cw[i & 3] += code * w_[i];
            }
            sums.codes += double{c1[0] + c1[1]} + double{c1[2] + c1[3]};
            sums.codes_squared += double{c2[0] + c2[1]} + double{c2[2] + c2[3]};
            sums.weights += double{w1[0] + w1[1]} + double{w1[2] + w1[3]};
            sums.products += double{cw[0] + cw[1]} + double{cw[2] + cw[3]};
        }
        return sums;
    }

    /// Least squares for the codes in trial_; false where they do not determine a grid.
    bool fit(double& scale, double& offset) const {
        const Moments sums = moments();
        if (!affine()) {
            if (sums.codes_squared == 0.0) {
                return false;
            }
            scale = sums.products / sums.codes_squared;
            return true;
        }
        const auto count = static_cast<double>(count_);
        const double determinant = count * sums.codes_squared - sums.codes * sums.codes;
        if (determinant <= 0.0) {
            return false;
        }
        scale = (count * sums.products - sums.codes * sums.weights) / determinant;
        offset = (sums.weights - scale * sums.codes) / count;
        return true;
    }

    /// Judges a start and its refinements; true when nothing is left to gain.
    bool consider(double scale, double offset) {
        for (int32_t round = 0; round <= kRefinements; ++round) {
            const Grid grid = storable(scale, offset);
            if (!std::isfinite(grid.scale) || !std::isfinite(grid.zero)) {
                return false;
            }
            const double error = assign(grid);
            if (error < best_error_) {
                best_error_ = error;
                best_ = grid;
                for (int64_t i = 0; i < count_; ++i) {
                    codes_[i] = static_cast<uint8_t>(trial_[static_cast<size_t>(i)]);
                }
            }
            if (best_error_ == 0.0 || !fit(scale, offset)) {
                break;
            }
        }
        return best_error_ == 0.0;
    }

    /// Share of the range that the narrowest start spans: the fewer the codes, the more clipping can pay.
    double narrowest() const {
        static constexpr double kShare[] = {0.3, 0.3, 0.3, 0.5, 0.65, 0.8, 0.9, 0.95, 0.97};
        return kShare[spec_.bits];
    }

    int32_t starts() const { return spec_.bits >= 6 ? 5 : 14; }

    /// Calls start(share) from the full range to the narrowest share, until it says that nothing is left to gain.
    template <class Start>
    bool for_each_share(const Start& start) {
        for (int32_t i = 0; i < starts(); ++i) {
            const double share = 1.0 - (1.0 - narrowest()) * i / (starts() - 1);
            if (start(share)) {
                return true;
            }
        }
        return false;
    }

    void search_affine(float low, float high) {
        const double middle = (double{low} + double{high}) / 2;
        const double half = (double{high} - double{low}) / 2;
        for_each_share([&](double share) {
            return consider(2 * half * share / double{top_code_}, middle - half * share);
        });
    }

    /// Either end of the code range may hold the weight of the largest magnitude; a negative scale is as good.
    void search_fixed(float low, float high) {
        const double extreme = -double{low} > double{high} ? double{low} : double{high};
        const double levels[] = {-double{spec_.fixed_zero}, double{top_code_} - double{spec_.fixed_zero}};
        for (const double level : levels) {
            if (level != 0.0 && for_each_share([&](double share) { return consider(extreme * share / level, 0.0); })) {
                return;
            }
        }
    }

    QuantSpec spec_;
    std::vector<float> trial_;
    float top_code_;
    const float* w_ = nullptr;
    int64_t count_ = 0;
    uint8_t* codes_ = nullptr;
    double best_error_ = INFINITY;
    Grid best_{};
};

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

QuantizedRows allocate(int64_t n, int64_t k, const QuantSpec& spec) {
    QuantizedRows out{};
    out.scale_type = spec.scale_format == ScaleFormat::f32 ? GroupType::f32 : GroupType::f16;
    if (spec.zero_point != ZeroPoint::fixed) {
        out.zero_type = spec.zero_point == ZeroPoint::integer ? GroupType::u8 : out.scale_type;
    }
    const auto values = static_cast<size_t>(n * num_groups(spec, k));
    out.codes.resize(static_cast<size_t>(n * k));
    out.scales.resize(values * static_cast<size_t>(element_bytes(out.scale_type)));
    out.zeros.resize(values * static_cast<size_t>(element_bytes(out.zero_type)));
    return out;
}

}  // namespace

QuantizedRows round_to_nearest(const float* weight, int64_t n, int64_t k, const QuantSpec& spec, int num_threads) {
    validate(spec);
    TMAC_CHECK(spec.scale_format != ScaleFormat::two_level, "[round_to_nearest] writes f16 or f32 scales, not two_level");
    QuantizedRows out = allocate(n, k, spec);
    const int64_t groups = num_groups(spec, k);
    const int64_t size = spec.group_size == -1 ? k : std::min<int64_t>(spec.group_size, k);
    parallel_for(n, 1, num_threads, [&](Range rows) {
        GroupSearch search(spec, size);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const float* w = weight + row * k;
            TMAC_CHECK(std::all_of(w, w + k, [](float value) { return std::isfinite(value); }),
                       "[round_to_nearest] row ", row, " of the weight holds a NaN or an infinity");
            for (int64_t group = 0; group < groups; ++group) {
                const int64_t begin = group * size;
                const Grid grid = search.run(w + begin, std::min(size, k - begin), out.codes.data() + row * k + begin);
                TMAC_CHECK(search.found(), "[round_to_nearest] the scale of row ", row, ", group ", group,
                           " does not fit ", out.scale_type == GroupType::f16 ? "f16: use scale_format='f32'" : "f32");
                const auto index = static_cast<size_t>(row * groups + group);
                store(out.scales, out.scale_type, index, grid.scale);
                if (out.zero_type != GroupType::none) {
                    store(out.zeros, out.zero_type, index, grid.zero);
                }
            }
        }
    });
    return out;
}

}  // namespace tmac
