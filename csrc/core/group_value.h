#pragma once

#include <cstdint>

#include "core/half.h"
#include "core/layout.h"

namespace tmac {

/// One scale, zero or offset as f32, exact. Always inlined, like half.h.
static TMAC_ALWAYS_INLINE float load_group_value(const void* values, GroupType type, int64_t index) {
    switch (type) {
        case GroupType::u8:
            return static_cast<float>(static_cast<const uint8_t*>(values)[index]);
        case GroupType::f16:
            return f16_to_f32(static_cast<const uint16_t*>(values)[index]);
        case GroupType::f32:
            return static_cast<const float*>(values)[index];
        case GroupType::i8:
            return static_cast<float>(static_cast<const int8_t*>(values)[index]);
        case GroupType::none:
            break;
    }
    return 0.0F;
}

}  // namespace tmac
