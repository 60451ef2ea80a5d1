#pragma once

#include <array>
#include <cstdint>

namespace tmac {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): 128 random bits that are a
/// function of `counter` and `key`, with no state.
constexpr std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t{0xD2511F53U} * counter[0];
        const uint64_t b = uint64_t{0xCD9E8D57U} * counter[2];
        counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
                   static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
        key = {key[0] + 0x9E3779B9U, key[1] + 0xBB67AE85U};
    }
    return counter;
}

/// Number `draw` of stream `stream` of `seed`: 0 <= u < 1, a multiple of 2^-53.
constexpr double random_unit(uint64_t seed, uint64_t draw, uint32_t stream = 0) {
    const std::array<uint32_t, 4> bits =
        philox({static_cast<uint32_t>(draw), static_cast<uint32_t>(draw >> 32), stream, 0},
               {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    return static_cast<double>((uint64_t{bits[0]} << 32 | bits[1]) >> 11) * 0x1p-53;
}

}  // namespace tmac
