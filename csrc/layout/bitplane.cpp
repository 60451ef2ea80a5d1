#include "layout/bitplane.h"

#include <algorithm>
#include <cstring>

#include "core/bits.h"

namespace tmac {

void codes_to_planes(const uint8_t* codes, int64_t k, int32_t bits, uint8_t* planes, int64_t plane_stride) {
    for (int64_t j = 0; j * 8 < k; ++j) {
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
