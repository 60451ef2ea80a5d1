#include "layout/bitplane.h"

#include <algorithm>
#include <cstring>

#include "core/bits.h"
#include "layout/bit_moves.h"

namespace tmac {

namespace {

/// Low halves of eight codes -> four bytes of two.
TMAC_ALWAYS_INLINE uint64_t fold_nibbles(const uint8_t* codes, int32_t down) {
    uint64_t eight = 0;
    std::memcpy(&eight, codes, sizeof(eight));
    eight = eight >> down & 0x0f0f0f0f0f0f0f0fULL;
    return (eight | eight >> 28) & 0xffffffffULL;
}

/// 64 codes' bits [down, down + 4) -> their planes, the highest bit first; what a code does not have is not stored.
TMAC_ALWAYS_INLINE void nibble_planes(const uint8_t* codes, int32_t down, int32_t count, uint8_t* planes,
                                      int64_t plane_stride) {
    uint64_t words[4];
    for (int64_t i = 0; i < 4; ++i) {
        words[i] = fold_nibbles(codes + 8 * i, down) | fold_nibbles(codes + 8 * i + 32, down) << 32;
    }
    nibbles_to_planes(words[3], words[2], words[1], words[0]);
    for (int32_t plane = 0; plane < count; ++plane) {
        std::memcpy(planes + plane * plane_stride, &words[count - 1 - plane], sizeof(uint64_t));
    }
}

}  // namespace

void codes_to_planes(const uint8_t* codes, int64_t k, int32_t bits, uint8_t* planes, int64_t plane_stride) {
    int64_t j = 0;
    for (; (j + 8) * 8 <= k; j += 8) {
        const int32_t top = std::max(0, bits - 4);
        nibble_planes(codes + j * 8, top, bits - top, planes + j, plane_stride);
        if (top > 0) {
            nibble_planes(codes + j * 8, 0, top, planes + (bits - top) * plane_stride + j, plane_stride);
        }
    }
    for (; j * 8 < k; ++j) {
        uint64_t eight = 0;
        std::memcpy(&eight, codes + j * 8, static_cast<size_t>(std::min<int64_t>(8, k - j * 8)));
        for (int32_t plane = 0; plane < bits; ++plane) {
            planes[plane * plane_stride + j] = gather_bits((eight >> (bits - 1 - plane)) & kLowBits);
        }
    }
}

void planes_to_codes(const uint8_t* planes, int64_t plane_stride, int64_t k, int32_t bits, uint8_t* codes) {
    for (int64_t j = 0; j * 8 < k; ++j) {
        uint64_t eight = 0;
        for (int32_t plane = 0; plane < bits; ++plane) {
            eight = (eight << 1) | spread_bits(planes[plane * plane_stride + j]);
        }
        std::memcpy(codes + j * 8, &eight, static_cast<size_t>(std::min<int64_t>(8, k - j * 8)));
    }
}

}  // namespace tmac
