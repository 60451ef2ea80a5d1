#pragma once

#include "kernels/vector_feedback.h"

// The grids of one group, a lane for each row. Starting grids span the range of the group's weights, or a part of it:
// with few codes it pays to clip. Each is refined by least squares for the codes that it gives, rounded to what can be
// stored, and judged by the error of the stored numbers.

namespace tmac {
namespace {

template <class V>
class LaneSearch {
    using F = typename V::F;

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
    }

    void run(float* scales, float* zeros) {
        if (args_.zero_point == ZeroPoint::fixed) {
            search_fixed();
        } else {
            search_affine();
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
    F stored_zero(F scale, F inverse, F offset) const {
        static_cast<void>(scale);
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

    /// Judges a grid and those that least squares make of it.
    void consider(F scale, F offset, int32_t refinements) {
        const bool offsets = args_.zero_point == ZeroPoint::offset;
        const bool fixed = args_.zero_point == ZeroPoint::fixed;
        const F from = V::set1(fixed ? args_.fixed_zero : args_.top / 2);  // codes are counted from here
        const F top = V::set1(args_.top);
        const F none = V::set1(0.0F);
        for (int32_t round = 0;; ++round) {
            const F s = stored_scale(scale);
            const F inverse = inverse_of(s);
            const F zero = stored_zero(s, inverse, offset);
            const F shift = offsets ? minus(V::multiply(zero, inverse)) : zero;
            const F subtract = offsets ? none : zero;
            const F add = offsets ? zero : none;
            F error = none;
            F c = none;
            F cc = none;
            F cw = none;
            for (int64_t i = 0; i < args_.count; ++i) {
                const F w = V::load(targets_ + i * kFeedbackRows);
                const F importance = V::set1(args_.importance[i]);
                const F code = clamp_code<V>(V::fma(w, inverse, shift), top);
                const F off = V::subtract(V::fma(V::subtract(code, subtract), s, add), w);
                const F steps = V::subtract(code, from);
                const F counted = V::multiply(steps, importance);
                error = V::fma(V::multiply(off, importance), off, error);
                c = V::add(c, counted);
                cc = V::fma(counted, steps, cc);
                cw = V::fma(counted, w, cw);
            }
            best_scale_ = V::select_less(error, best_error_, s, best_scale_);
            best_zero_ = V::select_less(error, best_error_, zero, best_zero_);
            best_error_ = V::select_less(error, best_error_, error, best_error_);
            if (round == refinements) {
                return;
            }
            if (fixed) {
                scale = V::divide(cw, cc);
            } else {  // NaN where the codes determine no grid: never the best
                const F count = V::set1(counts_);
                scale = V::divide(V::subtract(V::multiply(count, cw), V::multiply(c, weights_)),
                                  V::subtract(V::multiply(count, cc), V::multiply(c, c)));
                const F middle = V::divide(V::subtract(weights_, V::multiply(scale, c)), count);
                offset = V::subtract(middle, V::multiply(scale, from));
            }
        }
    }

    float share(int32_t start) const {
        return 1.0F - (1.0F - args_.narrowest) * static_cast<float>(start) / static_cast<float>(args_.starts - 1);
    }

    /// A zero is stored as a code (integer) or in codes (real): only a range that holds 0 always has one near by.
    void search_affine() {
        consider(V::set1(0.0F), V::divide(weights_, V::set1(counts_)), 0);
        if (args_.zero_point != ZeroPoint::offset) {
            const F zero = V::set1(0.0F);
            low_ = V::select_less(low_, zero, low_, zero);
            high_ = V::max(high_, zero);
        }
        const F half = V::set1(0.5F);
        const F middle = V::fma(low_, half, V::multiply(high_, half));
        const F reach = V::subtract(V::multiply(high_, half), V::multiply(low_, half));
        for (int32_t start = 0; start < args_.starts; ++start) {
            const F part = V::multiply(reach, V::set1(share(start)));
            consider(V::multiply(part, V::set1(2.0F / args_.top)), V::subtract(middle, part), args_.refinements);
        }
    }

    /// Either end of the code range may hold the weight of the largest magnitude; a negative scale is as good.
    void search_fixed() {
        const F extreme = V::select_less(high_, minus(low_), low_, high_);
        const float levels[] = {-args_.fixed_zero, args_.top - args_.fixed_zero};
        for (const float level : levels) {
            for (int32_t start = 0; level != 0.0F && start < args_.starts; ++start) {
                consider(V::multiply(extreme, V::set1(share(start) / level)), V::set1(0.0F), args_.refinements);
            }
        }
    }

    const GridSearchArgs& args_;
    const float* targets_;
    F low_;
    F high_;
    float counts_;  ///< sum of the importance
    F weights_;     ///< sum of the weights, each as often as it counts
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
