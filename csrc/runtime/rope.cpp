#include "runtime/rope.h"

#include <cmath>

namespace tmac {
namespace {

/// Dynamic NTK: the frequencies of the base that transformers computes for a sequence of `length` positions.
void ntk_frequencies(const Rope& rope, int64_t length, std::vector<float>& inv_freq) {
    const auto dim = static_cast<double>(2 * rope.inv_freq.size());
    const double factor = rope.factor;
    const double stretch = factor * static_cast<double>(length) / static_cast<double>(rope.original) - (factor - 1.0);
    const double base = rope.base * std::pow(stretch, dim / (dim - 2.0));
    for (size_t i = 0; i < inv_freq.size(); ++i) {
        inv_freq[i] = static_cast<float>(1.0 / std::pow(base, 2.0 * static_cast<double>(i) / dim));
    }
}

/// The frequencies for a sequence of `length` positions.
class Frequencies {
public:
    explicit Frequencies(const Rope& rope) : rope_(rope), stretched_(rope.inv_freq.size()) {}

    const std::vector<float>& of(int64_t length) {
        if (rope_.dynamic == Rope::Dynamic::none || length <= rope_.original) {
            return rope_.inv_freq;
        }
        if (rope_.dynamic == Rope::Dynamic::longrope) {
            return rope_.long_inv_freq;
        }
        if (length != stretched_for_) {
            ntk_frequencies(rope_, length, stretched_);
            stretched_for_ = length;
        }
        return stretched_;
    }

private:
    const Rope& rope_;
    std::vector<float> stretched_;
    int64_t stretched_for_ = 0;
};

}  // namespace

void make_rope_table(const Rope& rope, const std::vector<int64_t>& positions, const std::vector<int64_t>& lengths,
                     RopeTable& table) {
    const size_t pairs = rope.inv_freq.size();
    table.pairs = static_cast<int64_t>(pairs);
    table.cosines.resize(positions.size() * pairs);
    table.sines.resize(positions.size() * pairs);
    Frequencies frequencies(rope);
    for (size_t row = 0; row < positions.size(); ++row) {
        const std::vector<float>& inv_freq = frequencies.of(lengths[row]);
        const auto position = static_cast<float>(positions[row]);
        for (size_t i = 0; i < pairs; ++i) {
            const auto angle = static_cast<double>(position * inv_freq[i]);
            table.cosines[row * pairs + i] = static_cast<float>(std::cos(angle)) * rope.scale;
            table.sines[row * pairs + i] = static_cast<float>(std::sin(angle)) * rope.scale;
        }
    }
}

}  // namespace tmac
