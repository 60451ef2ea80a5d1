#pragma once

#include <cstdint>
#include <random>
#include <vector>

/// Numbers that are the same in every run and on every platform (the distributions of <random> are not).
class Random {
public:
    explicit Random(uint32_t seed) : engine_(seed) {}

    /// 0 .. limit - 1
    uint32_t below(uint32_t limit) { return static_cast<uint32_t>((uint64_t{engine_()} * limit) >> 32); }

    /// -1 .. 1
    float signed_unit() { return static_cast<float>(static_cast<int32_t>(engine_())) * 0x1p-31F; }

    std::vector<uint8_t> codes(int64_t count, uint32_t limit) {
        std::vector<uint8_t> result(static_cast<size_t>(count));
        for (uint8_t& code : result) {
            code = static_cast<uint8_t>(below(limit));
        }
        return result;
    }

    std::vector<float> floats(int64_t count) {
        std::vector<float> result(static_cast<size_t>(count));
        for (float& value : result) {
            value = signed_unit();
        }
        return result;
    }

private:
    std::mt19937 engine_;
};
