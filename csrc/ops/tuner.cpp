#include "ops/tuner.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/cache_size.h"
#include "core/check.h"
#include "core/half.h"
#include "core/huge_buffer.h"
#include "core/preemption.h"
#include "core/thread_pool.h"
#include "ops/linear.h"
#include "ops/pack.h"

namespace tmac {
namespace {

constexpr int64_t kMaxTimedWeights = int64_t{1} << 26;
constexpr int64_t kMaxTimedBits = int64_t{1} << 28;
constexpr int64_t kMaxTimedRows = int64_t{1} << 16;
constexpr int64_t kMaxBytes = int64_t{512} << 20;  ///< of all copies of all layouts
constexpr int64_t kCacheMultiple = 4;
constexpr int64_t kCopyAlign = 4096;
constexpr double kSampleSeconds = 2e-3;
constexpr double kLongestCall = 0.15;
constexpr double kHopeless = 4.0;
constexpr int kMaxCalls = 200;
constexpr int kMinCalls = 3;
constexpr int kTries = 4;
constexpr double kFewCalls = 0.02;  ///< seconds of a call from which on a sample is one call
constexpr int kProbes = 3;

/// xorshift64*: the codes need no better one.
struct Random {
    uint64_t state = 0x9e3779b97f4a7c15U;

    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545f4914f6cdd1dU;
    }
    float unit() { return static_cast<float>(next() >> 40) * 0x1p-23F - 1.0F; }
};

std::vector<uint8_t> random_planes(const QuantSpec& spec, int64_t n, int64_t k) {
    const auto plane = static_cast<size_t>(n * ((k + 7) / 8));
    std::vector<uint8_t> planes(spec.bits * plane);
    Random random;
    for (size_t at = 0; at < planes.size(); at += sizeof(uint64_t)) {
        const uint64_t word = random.next();
        std::memcpy(planes.data() + at, &word, std::min(sizeof(word), planes.size() - at));
    }
    if (spec.codebook == Codebook::ternary) {  // there is no code 3
        for (size_t i = 0; i < plane; ++i) {
            planes[plane + i] = static_cast<uint8_t>(planes[plane + i] & ~planes[i]);
        }
    }
    return planes;
}

std::vector<uint8_t> group_values(GroupType type, size_t count, float value) {
    if (type == GroupType::none) {
        return {};
    }
    const auto bytes = static_cast<size_t>(element_bytes(type));
    std::vector<uint8_t> values(count * bytes);
    const uint16_t half = f32_to_f16(value);
    const auto whole = static_cast<uint8_t>(value);  // an i8 as well
    const void* one = &value;
    if (type != GroupType::f32) {
        one = type == GroupType::f16 ? static_cast<const void*>(&half) : &whole;
    }
    for (size_t i = 0; i < count; ++i) {
        std::memcpy(values.data() + i * bytes, one, bytes);
    }
    return values;
}

/// A weight in the layout of `kernels`; what it holds is random, or the same everywhere.
PackedWeight random_weight(const QuantSpec& spec, int64_t n, int64_t k, const KernelPair& kernels, int num_threads) {
    const auto groups = static_cast<size_t>(n * num_groups(spec, k));
    const GroupType real = scale_type_of(spec.scale_format);
    const bool two_level = spec.scale_format == ScaleFormat::two_level;
    const GroupType zero_type = spec.zero_point == ZeroPoint::fixed     ? GroupType::none
                                : spec.zero_point == ZeroPoint::integer ? GroupType::u8
                                                                        : real;
    const std::vector<uint8_t> planes = random_planes(spec, n, k);
    const std::vector<uint8_t> scales = group_values(real, groups, two_level ? 1.0F : 0x1p-6F);
    const std::vector<uint8_t> zeros = group_values(zero_type, groups, 1.0F);
    const std::vector<uint16_t> super_values(two_level ? static_cast<size_t>(n * num_super_groups(k)) : 0,
                                             f32_to_f16(0x1p-6F));
    const bool fixed = zero_type == GroupType::none;
    return pack({spec,
                 {planes.data(), spec.bits, n, k},
                 scales.data(),
                 real,
                 fixed ? nullptr : zeros.data(),
                 zero_type,
                 nullptr,
                 two_level ? super_values.data() : nullptr,
                 two_level && !fixed ? super_values.data() : nullptr},
                kernels, num_threads);
}

/// Copies of one packed weight, each in turn.
class Copies {
public:
    Copies(const PackedWeight& weight, int64_t count, const std::function<void()>& checkpoint)
        : count_(count),
          stride_((weight.size() + kCopyAlign - 1) / kCopyAlign * kCopyAlign),
          bytes_(static_cast<size_t>(count_ * stride_)),
          view_(view_weight(weight.data(), weight.size())) {
        for (int64_t i = 0; i < count_; ++i) {
            checkpoint();
            std::memcpy(bytes_.data() + i * stride_, weight.data(), static_cast<size_t>(weight.size()));
        }
    }

    WeightView next(const KernelPair& kernels) {
        view_.data = bytes_.data() + at_ * stride_;
        view_.kernels = kernels;
        at_ = (at_ + 1) % count_;
        return view_;
    }

    int64_t stride() const { return stride_; }
    Layout layout() const { return view_.header.layout; }

private:
    int64_t count_;
    int64_t stride_;
    int64_t at_ = 0;
    HugeBuffer bytes_;
    WeightView view_;
};

struct Shape {
    int64_t n, k;
};

class Measurement {
public:
    Measurement(const QuantSpec& spec, Shape shape, const std::vector<KernelPair>& pairs, const TimingPlan& plan,
                const std::function<void()>& checkpoint)
        : spec_(spec),
          shape_(shape),
          plan_(plan),
          checkpoint_(checkpoint),
          threads_(plan.num_threads > 0 ? plan.num_threads : get_num_threads()) {
        const int64_t most = *std::max_element(plan.tokens.begin(), plan.tokens.end());
        x_.resize(static_cast<size_t>(most * shape.k));
        y_.resize(static_cast<size_t>(most * shape.n));
        Random random;
        std::generate(x_.begin(), x_.end(), [&] { return random.unit(); });
        for (const KernelPair& pair : pairs) {
            results_.push_back({pair, std::vector<std::vector<double>>(plan.tokens.size())});
        }
    }

    std::vector<KernelTimes> run() {
        probe();
        spread_copies();
        first_look();
        for (int run = 0; run < plan_.runs; ++run) {
            for (size_t which = 0; which < plan_.tokens.size(); ++which) {
                for (size_t i = 0; i < results_.size(); ++i) {
                    const size_t pair = (i + static_cast<size_t>(run)) % results_.size();
                    if (in_race(pair)) {
                        sample(pair, which);
                    }
                }
            }
        }
        return std::move(results_);
    }

private:
    /// Seconds of one call at one token, from the weight that was just packed: least of a few.
    void probe() {
        for (const KernelTimes& result : results_) {
            Copies& weights = copies_of(result.kernels);
            double best = call(weights, result.kernels, 1);
            for (int i = 1; i < kProbes && best < kLongestCall; ++i) {
                best = std::min(best, call(weights, result.kernels, 1));
            }
            probed_.push_back(best);
        }
        best_ = *std::min_element(probed_.begin(), probed_.end());
    }

    bool in_race(size_t pair) const { return probed_[pair] <= kHopeless * best_; }

    /// From one copy of each layout in the race to as many as do not fit into the cache.
    void spread_copies() {
        std::vector<bool> racing(copies_.size());
        for (size_t pair = 0; pair < results_.size(); ++pair) {
            const auto index = static_cast<size_t>(&copies_of(results_[pair].kernels) - copies_.data());
            racing[index] = racing[index] || in_race(pair);
        }
        const int64_t share = kMaxBytes / std::count(racing.begin(), racing.end(), true);
        const int64_t wanted = kCacheMultiple * last_level_cache_bytes(threads_);
        for (size_t index = 0; index < copies_.size(); ++index) {
            if (!racing[index]) {
                continue;
            }
            const int64_t stride = copies_[index].stride();
            const int64_t count = std::max<int64_t>(1, std::min((wanted + stride - 1) / stride, share / stride));
            copies_[index] = Copies(packed_[index], count, checkpoint_);
        }
    }

    /// Warms up, finds out how many calls fill a sample, and is the one sample of a pair that is out of the race.
    void first_look() {
        for (size_t pair = 0; pair < results_.size(); ++pair) {
            calls_.emplace_back();
            for (size_t which = 0; which < plan_.tokens.size(); ++which) {
                checkpoint_();
                const double seconds = seconds_of_call(pair, which);
                const int least = seconds < kFewCalls ? kMinCalls : 1;
                calls_[pair].push_back(std::clamp(static_cast<int>(kSampleSeconds / seconds), least, kMaxCalls));
                if (!in_race(pair)) {
                    results_[pair].seconds[which].push_back(seconds);
                }
            }
        }
    }

    /// The median over undisturbed calls; over all where another process had the CPU during each of them.
    void sample(size_t pair, size_t which) {
        checkpoint_();
        const auto wanted = static_cast<size_t>(calls_[pair][which]);
        std::vector<double> seconds;
        std::vector<double> disturbed;
        while (seconds.size() < wanted && seconds.size() + disturbed.size() < kTries * wanted) {
            const int64_t before = preemptions();
            const double passed = seconds_of_call(pair, which);
            (preemptions() == before ? seconds : disturbed).push_back(passed);
        }
        std::vector<double>& counted = seconds.empty() ? disturbed : seconds;
        const auto middle = counted.begin() + static_cast<std::ptrdiff_t>(counted.size() / 2);
        std::nth_element(counted.begin(), middle, counted.end());
        results_[pair].seconds[which].push_back(*middle);
    }

    /// Seconds of the plan's number of tokens. Pairs in the race are timed over equally many tokens.
    double seconds_of_call(size_t pair, size_t which) {
        const double one = in_race(pair) ? best_ : probed_[pair];
        const int64_t wanted = plan_.tokens[which];
        const int64_t tokens = std::clamp<int64_t>(static_cast<int64_t>(kLongestCall / one), 1, wanted);
        const double seconds = call(copies_of(results_[pair].kernels), results_[pair].kernels, tokens,
                                    wanted > kDecodeTokens ? Phase::prompt : Phase::decode);
        return seconds * static_cast<double>(wanted) / static_cast<double>(tokens);
    }

    double call(Copies& weights, const KernelPair& kernels, int64_t tokens, Phase phase = Phase::decode) {
        const WeightView weight = weights.next(kernels);
        const Tensor x{x_.data(), DType::f32, tokens, shape_.k, shape_.k};
        const Tensor y{y_.data(), DType::f32, tokens, shape_.n, shape_.n};
        const auto begin = std::chrono::steady_clock::now();
        linear(x, {{weight, nullptr, y}}, phase, threads_);
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - begin;
        return std::max(passed.count(), 1e-9);
    }

    Copies& copies_of(const KernelPair& kernels) {
        for (Copies& copies : copies_) {
            if (copies.layout() == packed_layout(kernels, spec_)) {
                return copies;
            }
        }
        checkpoint_();
        packed_.push_back(random_weight(spec_, shape_.n, shape_.k, kernels, threads_));
        return copies_.emplace_back(packed_.back(), 1, checkpoint_);
    }

    const QuantSpec spec_;
    const Shape shape_;
    const TimingPlan& plan_;
    const std::function<void()>& checkpoint_;
    const int threads_;
    std::vector<float> x_;
    std::vector<float> y_;
    std::vector<PackedWeight> packed_;  ///< one per layout
    std::vector<Copies> copies_;        ///< of each
    std::vector<KernelTimes> results_;
    std::vector<double> probed_;
    std::vector<std::vector<int>> calls_;  ///< per sample, [pair][plan.tokens]
    double best_ = 0;
};

void check(int64_t n, int64_t k, const std::vector<KernelPair>& pairs, const TimingPlan& plan) {
    TMAC_CHECK(n >= 1 && n <= kMaxRows, "[time_kernels] out_features must be 1 to ", kMaxRows, ", got ", n);
    TMAC_CHECK(k >= 1 && k <= kMaxTimedColumns, "[time_kernels] in_features must be 1 to ", kMaxTimedColumns, ", got ",
               k);
    TMAC_CHECK(!pairs.empty(), "[time_kernels] there is no kernel to time");
    TMAC_CHECK(plan.runs >= 1, "[time_kernels] runs must be at least 1, got ", plan.runs);
    TMAC_CHECK(plan.num_threads >= 0, "[time_kernels] num_threads must not be negative, got ", plan.num_threads);
    TMAC_CHECK(!plan.tokens.empty(), "[time_kernels] no number of tokens is given");
    for (const int64_t tokens : plan.tokens) {
        TMAC_CHECK(tokens >= 1 && tokens <= kMaxTimedTokens, "[time_kernels] tokens must be 1 to ", kMaxTimedTokens,
                   ", got ", tokens);
    }
}

}  // namespace

std::vector<KernelTimes> time_kernels(const QuantSpec& spec, int64_t n, int64_t k, const std::vector<KernelPair>& pairs,
                                      const TimingPlan& plan, const std::function<void()>& checkpoint) {
    check(n, k, pairs, plan);
    const int64_t weights = std::min(kMaxTimedWeights, kMaxTimedBits / spec.bits);
    const int64_t rows = std::min({n, kMaxTimedRows, std::max<int64_t>(weights / k, 1)});
    std::vector<KernelTimes> times = Measurement(spec, {rows, k}, pairs, plan, checkpoint).run();
    const double whole = static_cast<double>(n) / static_cast<double>(rows);
    for (KernelTimes& each : times) {
        for (std::vector<double>& seconds : each.seconds) {
            std::transform(seconds.begin(), seconds.end(), seconds.begin(), [&](double s) { return s * whole; });
        }
    }
    return times;
}

}  // namespace tmac
