#include "layout/trit.h"

namespace tmac {

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

}  // namespace tmac
