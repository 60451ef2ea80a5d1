#pragma once

#include "kernels/vector_feedback.h"

// The grids of one group, a lane for each row. Starting grids span the range of the group's weights, or a part of it:
// with few codes it pays to clip. They are rounded to what can be stored and judged by the error of the stored numbers;
// the best of them are refined by least squares for the codes that they give.

namespace tmac {
namespace {

template <class V>
class LaneSearch {
    using F = typename V::F;

    struct Start {
        F error;
        F scale;
        F offset;  ///< what code 0 stands for
    };

public:
    /// Rows [row, row + 16) of the targets.
    LaneSearch(const GridSearchArgs& args, int32_t row) : args_(args), targets_(args.targets + row) {
        low_ = high_ = V::load(targets_);
        counts_ = 0.0F;
        weights_ = V::set1(0.0F);
        for (int64_t i = 0; i < args.count; ++i) {
            const F w = V::load(targets_ + i * kFeedbackRows);
            low_ = V::select_less(w, low_, w, low_);
            high_ = V::max(w, high_);
            counts_ += args.importance[i];
            weights_ = V::fma(V::set1(args.importance[i]), w, weights_);
        }
        best_error_ = V::set1(INFINITY);
        best_scale_ = best_zero_ = V::set1(NAN);
        starts_[0] = starts_[1] = {best_error_, best_zero_, best_zero_};
    }

    void run(float* scales, float* zeros) {
        if (args_.zero_point == ZeroPoint::fixed) {
            search_fixed();
        } else {
            search_affine();
        }
        for (const Start& from : starts_) {
            refine(from.scale, from.offset);
        }
        V::store(scales, best_scale_);
        V::store(zeros, best_zero_);
    }

private:
    static F minus(F a) { return V::multiply(a, V::set1(-1.0F)); }

    F stored(F value) const {
        if (!args_.halves) {
            return value;
        }
        uint16_t halves[kVectorLanes];
        V::store_f16(halves, value);
        return V::load_f16(halves);
    }

    /// A scale below the smallest half becomes that, not zero.
    F stored_scale(F scale) const {
        const F rounded = stored(scale);
        if (!args_.halves) {
            return rounded;
        }
        const F smallest = V::copy_sign(V::set1(0x1p-24F), scale);
        const F zero = V::set1(0.0F);
        const F lifted = V::select_less(zero, V::abs(scale), smallest, rounded);
        return V::select_less(zero, V::abs(rounded), rounded, lifted);
    }

    /// 1 / scale, 0 for 0.
    static F inverse_of(F scale) {
        const F zero = V::set1(0.0F);
        return V::select_less(zero, V::abs(scale), V::divide(V::set1(1.0F), scale), zero);
    }

    /// What is stored beside a scale; `offset` stands for code 0.
    F stored_zero(F inverse, F offset) const {
        switch (args_.zero_point) {
            case ZeroPoint::fixed:
                return V::set1(args_.fixed_zero);
            case ZeroPoint::offset:
                return stored(offset);
            case ZeroPoint::real:
                return stored(minus(V::multiply(offset, inverse)));
            case ZeroPoint::integer:
                break;
        }
        return clamp_code<V>(minus(V::multiply(offset, inverse)), V::set1(args_.top));
    }

    /// Judges a grid. With `Sums` scale and offset become those that fit its codes best, by least squares.
    template <bool Sums>
    TMAC_ALWAYS_INLINE void judge(F& scale, F& offset) {
        const bool offsets = args_.zero_point == ZeroPoint::offset;
        const bool fixed = args_.zero_point == ZeroPoint::fixed;
        const F from = V::set1(fixed ? args_.fixed_zero : args_.top / 2);  // codes are counted from here
        const F top = V::set1(args_.top);
        const F none = V::set1(0.0F);
        const F s = stored_scale(scale);
        const F inverse = inverse_of(s);
        const F zero = stored_zero(inverse, offset);
        const F shift = offsets ? minus(V::multiply(zero, inverse)) : zero;
        // A value as code * s + base: the roundings of what is stored do not matter here.
        const F base = offsets ? zero : minus(V::multiply(zero, s));
        F error = none;
        F c = none;
        F cc = none;
        F cw = none;
        for (int64_t i = 0; i < args_.count; ++i) {
            const F w = V::load(targets_ + i * kFeedbackRows);
            const F importance = V::set1(args_.importance[i]);
            const F code = clamp_code<V>(V::fma(w, inverse, shift), top);
            const F off = V::subtract(V::fma(code, s, base), w);
            error = V::fma(V::multiply(off, importance), off, error);
            if constexpr (Sums) {
                const F steps = V::subtract(code, from);
                const F counted = V::multiply(steps, importance);
                c = V::add(c, counted);
                cc = V::fma(counted, steps, cc);
                cw = V::fma(counted, w, cw);
            }
        }
        if constexpr (!Sums) {
            keep({error, scale, offset});
            return;
        }
        best_scale_ = V::select_less(error, best_error_, s, best_scale_);
        best_zero_ = V::select_less(error, best_error_, zero, best_zero_);
        best_error_ = V::select_less(error, best_error_, error, best_error_);
        if (Sums && fixed) {
            scale = V::divide(cw, cc);
        } else if (Sums) {  // NaN where the codes determine no grid: never the best
            const F count = V::set1(counts_);
            scale = V::divide(V::subtract(V::multiply(count, cw), V::multiply(c, weights_)),
                              V::subtract(V::multiply(count, cc), V::multiply(c, c)));
            const F middle = V::divide(V::subtract(weights_, V::multiply(scale, c)), count);
            offset = V::subtract(middle, V::multiply(scale, from));
        }
    }

    static Start choose(F left, F right, const Start& less, const Start& other) {
        return {V::select_less(left, right, less.error, other.error),
                V::select_less(left, right, less.scale, other.scale),
                V::select_less(left, right, less.offset, other.offset)};
    }

    /// Among the best starts, which stay in order.
    void keep(const Start& found) {
        const Start second = choose(found.error, starts_[0].error, starts_[0], found);
        starts_[0] = choose(found.error, starts_[0].error, found, starts_[0]);
        starts_[1] = choose(second.error, starts_[1].error, second, starts_[1]);
    }

    TMAC_NOINLINE void start(F scale, F offset) { judge<false>(scale, offset); }

    TMAC_NOINLINE void refine(F scale, F offset) {
        for (int32_t round = 0; round <= args_.refinements; ++round) {
            judge<true>(scale, offset);
        }
    }

    float share(int32_t start) const {
        return 1.0F - (1.0F - args_.narrowest) * static_cast<float>(start) / static_cast<float>(args_.starts - 1);
    }

    /// Either end of the range may be worth clipping without the other. A zero is stored as a code (integer) or in
    /// codes (real): only a range that holds 0 always has one near by.
    void search_affine() {
        const F middle = V::divide(weights_, V::set1(counts_));
        if (args_.zero_point != ZeroPoint::offset) {
            const F zero = V::set1(0.0F);
            low_ = V::select_less(low_, zero, low_, zero);
            high_ = V::max(high_, zero);
        }
        start(V::set1(0.0F), middle);
        const F low_step = V::multiply(V::subtract(middle, low_), V::set1(args_.end_step));
        const F high_step = V::multiply(V::subtract(middle, high_), V::set1(args_.end_step));
        const F steps = V::set1(1.0F / args_.top);
        for (int32_t i = 0; i < args_.ends; ++i) {
            const F bottom = V::fma(V::set1(static_cast<float>(i)), low_step, low_);
            for (int32_t j = 0; j < args_.ends; ++j) {
                const F top = V::fma(V::set1(static_cast<float>(j)), high_step, high_);
                start(V::multiply(V::subtract(top, bottom), steps), bottom);
            }
        }
    }

    /// Either end of the code range may hold the weight of the largest magnitude; a negative scale is as good.
    void search_fixed() {
        const F extreme = V::select_less(high_, minus(low_), low_, high_);
        const float levels[] = {-args_.fixed_zero, args_.top - args_.fixed_zero};
        for (const float level : levels) {
            for (int32_t i = 0; level != 0.0F && i < args_.starts; ++i) {
                start(V::multiply(extreme, V::set1(share(i) / level)), V::set1(0.0F));
            }
        }
    }

    const GridSearchArgs& args_;
    const float* targets_;
    F low_;
    F high_;
    float counts_;     ///< sum of the importance
    F weights_;        ///< sum of the weights, each as often as it counts
    Start starts_[2];  ///< the best, as they were before they were stored
    F best_error_;
    F best_scale_;
    F best_zero_;
};

template <class V>
void search_grids(const GridSearchArgs& args, float* scales, float* zeros) {
    for (int32_t row = 0; row < kFeedbackRows; row += kVectorLanes) {
        LaneSearch<V>(args, row).run(scales + row, zeros + row);
    }
}

}  // namespace
}  // namespace tmac
