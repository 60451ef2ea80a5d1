#include "ops/round_to_nearest.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

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
    float zero;  ///< ZeroPoint::offset: the offset; else the zero
};

/// What a grid's codes c (counted from the zero where that is fixed) and the weights w add up to.
struct Trial {
    double error = 0;  ///< squared distance of the weights that the stored numbers stand for
    double c = 0;
    double cc = 0;
    double cw = 0;
};

constexpr int32_t kRefinements = 2;
constexpr float kSmallestHalf = 0x1p-24F;
constexpr int32_t kBlock = 32;  ///< columns whose sums stay in f32; plain loops over it vectorize

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

/// One block; a column counts `counts[j]` times, 0 where it only fills the block up.
void round_block(const Rounding& r, const float* w, const float* counts, float* codes, Trial& trial) {
    constexpr float kRound = 0x1.8p23F;  // adding and subtracting it rounds to an integer
    float code[kBlock];
    float error[kBlock];
    float c[kBlock];
    float cc[kBlock];
    float cw[kBlock];
    for (int32_t j = 0; j < kBlock; ++j) {
        float near = w[j] * r.inverse + r.shift;
        near = near > 0.0F ? near : 0.0F;
        near = near < r.top ? near : r.top;
        code[j] = (near + kRound) - kRound;
        const float off = (code[j] - r.subtract) * r.scale + r.add - w[j];
        const float from_zero = code[j] - r.from;
        error[j] = off * off * counts[j];
        c[j] = from_zero * counts[j];
        cc[j] = from_zero * c[j];
        cw[j] = c[j] * w[j];
    }
    std::memcpy(codes, code, sizeof(code));
    trial.error += double{fold(error)};
    trial.c += double{fold(c)};
    trial.cc += double{fold(cc)};
    trial.cw += double{fold(cw)};
}

/// One group of one row, with the buffers that the search needs.
class GroupSearch {
public:
    GroupSearch(const QuantSpec& spec, int64_t largest_group)
        : spec_(spec), w_(padded(largest_group)), counts_(padded(largest_group)), trial_(padded(largest_group)) {
        top_code_ = spec.codebook == Codebook::ternary ? 2.0F : static_cast<float>((1 << spec.bits) - 1);
    }

    /// Writes the group's codes and returns its grid.
    Grid run(const float* w, int64_t count, uint8_t* codes) {
        const auto size = static_cast<size_t>(count);
        std::fill(std::copy(w, w + count, w_.begin()), w_.end(), 0.0F);
        std::fill(counts_.begin(), counts_.end(), 0.0F);
        if (by_magnitude()) {
            std::transform(w, w + count, counts_.begin(), [](float value) { return std::fabs(value); });
        } else {
            std::fill_n(counts_.begin(), size, 1.0F);
        }
        count_ = count;
        sum_ = std::accumulate(w, w + count, 0.0);
        codes_ = codes;
        best_error_ = INFINITY;
        const auto [low, high] = std::minmax_element(w, w + count);
        affine() ? search_affine(*low, *high) : search_fixed(*low, *high);
        return best_;
    }

    /// Whether any grid of the last run could be stored.
    bool found() const { return best_error_ < INFINITY; }

private:
    static size_t padded(int64_t count) { return static_cast<size_t>((count + kBlock - 1) / kBlock * kBlock); }

    /// Counts every weight alike, the least squares of a grid around a fixed zero clip the largest weights, which costs
    /// a model more than it saves (SmolLM2-135M, 4 bits, group 64: perplexity 20.0, by magnitude 17.4). With fewer than
    /// 3 bits there is nothing but clipping, and with an offset the grid reaches both ends anyway.
    bool by_magnitude() const { return !affine() && spec_.bits >= 3; }

    bool affine() const { return spec_.zero_point != ZeroPoint::fixed; }

    float stored(float value) const {
        return spec_.scale_format == ScaleFormat::f32 ? value : f16_to_f32(f32_to_f16(value));
    }

    /// The nearest grid that can be stored. A scale below the smallest half becomes that, not zero.
    Grid storable(double scale, double offset) const {
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

    /// Codes of the grid into trial_, and their sums.
    Trial assign(const Grid& grid) {
        const bool is_offset = spec_.zero_point == ZeroPoint::offset;
        Rounding r{};
        r.scale = grid.scale;
        r.inverse = grid.scale == 0.0F ? 0.0F : 1.0F / grid.scale;
        r.shift = is_offset ? -grid.zero * r.inverse : grid.zero;
        r.add = is_offset ? grid.zero : 0.0F;
        r.subtract = is_offset ? 0.0F : grid.zero;
        r.from = affine() ? 0.0F : spec_.fixed_zero;
        r.top = top_code_;
        Trial trial;
        for (size_t i = 0; i < padded(count_); i += kBlock) {
            round_block(r, w_.data() + i, counts_.data() + i, trial_.data() + i, trial);
        }
        return trial;
    }

    /// Least squares for a trial's codes; false where they do not determine a grid.
    bool fit(const Trial& trial, double& scale, double& offset) const {
        if (!affine()) {
            scale = trial.cw / trial.cc;
            return trial.cc != 0.0;
        }
        const auto count = static_cast<double>(count_);
        const double determinant = count * trial.cc - trial.c * trial.c;
        if (determinant <= 0.0) {
            return false;
        }
        scale = (count * trial.cw - trial.c * sum_) / determinant;
        offset = (sum_ - scale * trial.c) / count;
        return true;
    }

    /// Judges a start and its refinements; true when nothing is left to gain.
    bool consider(double scale, double offset) {
        Grid last{NAN, NAN};
        for (int32_t round = 0; round <= kRefinements; ++round) {
            const Grid grid = storable(scale, offset);
            const bool settled = grid.scale == last.scale && grid.zero == last.zero;
            if (settled || !std::isfinite(grid.scale) || !std::isfinite(grid.zero)) {
                break;
            }
            last = grid;
            const Trial trial = assign(grid);
            if (trial.error < best_error_) {
                best_error_ = trial.error;
                best_ = grid;
                for (int64_t i = 0; i < count_; ++i) {
                    codes_[i] = static_cast<uint8_t>(static_cast<int32_t>(trial_[static_cast<size_t>(i)]));
                }
            }
            if (best_error_ == 0.0 || !fit(trial, scale, offset)) {
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

    int32_t starts() const {
        static constexpr int32_t kStarts[] = {12, 12, 12, 12, 10, 7, 4, 4, 4};
        return kStarts[spec_.bits];
    }

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

    /// A zero is stored as a code (integer) or in codes (real): only a range that holds 0 always has one near by.
    void search_affine(float low, float high) {
        consider(0.0, sum_ / static_cast<double>(count_));
        span(low, high);
        if (spec_.zero_point != ZeroPoint::offset && (low > 0.0F || high < 0.0F)) {
            span(std::min(low, 0.0F), std::max(high, 0.0F));
        }
    }

    void span(float low, float high) {
        const double middle = (double{low} + double{high}) / 2;
        const double half = (double{high} - double{low}) / 2;
        for_each_share(
            [&](double share) { return consider(2 * half * share / double{top_code_}, middle - half * share); });
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
    std::vector<float> w_;       ///< the group's weights, zero past its end
    std::vector<float> counts_;  ///< 1 in the group, 0 past its end
    std::vector<float> trial_;   ///< codes of the grid last tried
    float top_code_ = 0.0F;
    double sum_ = 0;  ///< of the group's weights
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
    out.scale_type = scale_type_of(spec.scale_format);
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
    if (spec.scale_format == ScaleFormat::two_level) {
        throw UnsupportedSpec("[round_to_nearest] writes f16 or f32 scales, not scale_format='two_level'");
    }
    check_size(weight, n * k, spec);
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
