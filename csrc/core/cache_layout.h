#pragma once

#include <cstdint>

#include "core/range.h"

namespace tmac {

enum class CacheType : uint8_t { f32, f16, i8 };

inline constexpr int32_t kKeyGroup = 16;
inline constexpr int32_t kPagePositions = 64;
inline constexpr int32_t kSpanPositions = 256;

struct CacheLayout {
    CacheType type = CacheType::f32;
    int32_t kv_heads = 0;
    int32_t head_dim = 0;

    int64_t element_bytes() const { return type == CacheType::f32 ? 4 : type == CacheType::f16 ? 2 : 1; }
    int64_t padded_dim() const { return round_up(head_dim, 16); }
    int64_t key_group_bytes() const { return head_dim * kKeyGroup * element_bytes(); }
    int64_t value_group_bytes() const { return padded_dim() * kKeyGroup * element_bytes(); }
    int64_t values_offset() const { return 4 * key_group_bytes(); }
    int64_t key_scales_offset() const { return values_offset() + 4 * value_group_bytes(); }
    int64_t value_scales_offset() const { return key_scales_offset() + (type == CacheType::i8 ? 4 * kPagePositions : 0); }
    int64_t head_bytes() const { return value_scales_offset() + (type == CacheType::i8 ? 4 * kPagePositions : 0); }
};

}  // namespace tmac
