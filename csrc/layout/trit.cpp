#include "layout/trit.h"

#include <algorithm>
#include <cstring>

namespace tmac {
namespace {

constexpr uint16_t kNoTrits = 0x8000;

/// The codes of a byte: their low bits in bits 0 to 4, their high bits in bits 5 to 9.
struct TritBits {
    uint16_t of[256];
};

consteval TritBits make_trit_bits() {
    TritBits table{};
    for (uint32_t byte = 0; byte < 256; ++byte) {
        uint32_t bits = byte > 242 ? kNoTrits : 0U;
        for (uint32_t i = 0, rest = byte; i < 5; ++i, rest /= 3) {
            bits |= (rest % 3 == 1 ? 1U : 0U) << i | (rest % 3 == 2 ? 32U : 0U) << i;
        }
        table.of[byte] = static_cast<uint16_t>(bits);
    }
    return table;
}

constexpr TritBits kTritBits = make_trit_bits();

}  // namespace

void codes_to_trits(const uint8_t* codes, int64_t k, uint8_t* trits) {
    for (int64_t j = 0; j * 5 < k; ++j) {
        int32_t byte = 0;
        for (int64_t i = 4; i >= 0; --i) {
            const int64_t column = j * 5 + i;
            byte = byte * 3 + (column < k ? codes[column] : 1);
        }
        trits[j] = static_cast<uint8_t>(byte);
    }
}

bool trits_to_codes(const uint8_t* trits, int64_t k, uint8_t* codes) {
    for (int64_t j = 0; j * 5 < k; ++j) {
        int32_t byte = trits[j];
        if (byte > 242) {
            return false;
        }
        for (int64_t column = j * 5; column < j * 5 + 5 && column < k; ++column) {
            codes[column] = static_cast<uint8_t>(byte % 3);
            byte /= 3;
        }
    }
    return true;
}

bool trits_to_planes(const uint8_t* trits, int64_t k, uint8_t* high, uint8_t* low) {
    const int64_t trit_bytes = (k + 4) / 5;
    uint32_t all = 0;
    for (int64_t byte = 0; byte < trit_bytes; byte += 8, high += 5, low += 5) {  // 40 columns
        uint64_t of_high = 0;
        uint64_t of_low = 0;
        const int64_t count = std::min<int64_t>(8, trit_bytes - byte);
        for (int64_t i = 0; i < count; ++i) {
            const uint32_t bits = kTritBits.of[trits[byte + i]];
            all |= bits;
            of_low |= uint64_t{bits & 31U} << (5 * i);
            of_high |= uint64_t{bits >> 5 & 31U} << (5 * i);
        }
        const int64_t columns = std::min<int64_t>(40, k - byte * 5);
        const uint64_t mask = (uint64_t{1} << columns) - 1;  // what is behind the last column is no code
        of_low &= mask;
        of_high &= mask;
        std::memcpy(low, &of_low, static_cast<size_t>((columns + 7) / 8));
        std::memcpy(high, &of_high, static_cast<size_t>((columns + 7) / 8));
    }
    return (all & kNoTrits) == 0;
}

}  // namespace tmac
