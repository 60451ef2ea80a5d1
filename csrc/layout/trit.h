#pragma once

#include <cstdint>

namespace tmac {

/// The file format of ternary codes: byte = sum over i < 5 of code[5j+i] * 3^i; columns past k are code 1.
void codes_to_trits(const uint8_t* codes, int64_t k, uint8_t* trits);

/// The inverse. Returns false when a byte is above 3^5 - 1.
bool trits_to_codes(const uint8_t* trits, int64_t k, uint8_t* codes);

/// Trits to the two planes of their codes, without a detour over these; false as above.
bool trits_to_planes(const uint8_t* trits, int64_t k, uint8_t* high, uint8_t* low);

}  // namespace tmac
